# Written by tests/completions.rs from the program's own command line.

# The VMs or containers of this node, by the names of their configs; NVIDIA's display functions, by address.
function __gpu_handoff_vms
    path basename /etc/pve/qemu-server/*.conf 2>/dev/null | string replace -r '\.conf$' ''
end
function __gpu_handoff_containers
    path basename /etc/pve/lxc/*.conf 2>/dev/null | string replace -r '\.conf$' ''
end
function __gpu_handoff_gpus
    for device in /sys/bus/pci/devices/*
        string match -q 0x10de <$device/vendor 2>/dev/null; and string match -q '0x03*' <$device/class
        and path basename $device
    end
end
# No command takes a file.
complete -c gpu-handoff -f
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand handoff" -a 'vfio nvidia'

# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_gpu_handoff_global_optspecs
    string join \n n/dry-run json q/quiet v/verbose h/help V/version
end

function __fish_gpu_handoff_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_gpu_handoff_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_gpu_handoff_using_subcommand
    set -l cmd (__fish_gpu_handoff_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c gpu-handoff -n "__fish_gpu_handoff_needs_command" -s n -l dry-run -d 'Show what would be done and why, touch nothing'
complete -c gpu-handoff -n "__fish_gpu_handoff_needs_command" -l json -d 'Print JSON instead of text, where anything is printed'
complete -c gpu-handoff -n "__fish_gpu_handoff_needs_command" -s q -l quiet -d 'Only warnings and errors'
complete -c gpu-handoff -n "__fish_gpu_handoff_needs_command" -s v -l verbose -d 'Say why things are decided'
complete -c gpu-handoff -n "__fish_gpu_handoff_needs_command" -s h -l help -d 'Print help'
complete -c gpu-handoff -n "__fish_gpu_handoff_needs_command" -s V -l version -d 'Print version'
complete -c gpu-handoff -n "__fish_gpu_handoff_needs_command" -f -a "to_vfio" -d 'Hand the GPU to vfio-pci, by hand'
complete -c gpu-handoff -n "__fish_gpu_handoff_needs_command" -f -a "to_nvidia" -d 'Bring the GPU home to the host\'s driver, by hand'
complete -c gpu-handoff -n "__fish_gpu_handoff_needs_command" -f -a "handoff" -d 'The same two, in other words: handoff vfio, handoff nvidia'
complete -c gpu-handoff -n "__fish_gpu_handoff_needs_command" -f -a "plan" -d 'What pre-start would do for a VM, and why'
complete -c gpu-handoff -n "__fish_gpu_handoff_needs_command" -f -a "status" -d 'Every GPU: drivers, group, who has it, who uses it'
complete -c gpu-handoff -n "__fish_gpu_handoff_needs_command" -f -a "holders" -d 'Who uses a GPU, and what a handoff would do to each'
complete -c gpu-handoff -n "__fish_gpu_handoff_needs_command" -f -a "recover" -d 'Bring every stranded GPU home, or say why not'
complete -c gpu-handoff -n "__fish_gpu_handoff_needs_command" -f -a "prepare" -d 'Make the host ready for handoffs: shows what would be changed; --apply does it'
complete -c gpu-handoff -n "__fish_gpu_handoff_needs_command" -f -a "attach" -d 'Give a VM or container the hook, and a GPU: shows the command, and asks'
complete -c gpu-handoff -n "__fish_gpu_handoff_needs_command" -f -a "detach" -d 'Take the hook away from a VM or container: shows the command, and asks'
complete -c gpu-handoff -n "__fish_gpu_handoff_needs_command" -f -a "history" -d 'Past handoffs with the time each took; -v shows the time of each step'
complete -c gpu-handoff -n "__fish_gpu_handoff_needs_command" -f -a "check" -d 'Whether this host is ready: what is in the way of handoffs, and what mends it'
complete -c gpu-handoff -n "__fish_gpu_handoff_needs_command" -f -a "report" -d 'One archive for a bug report: this host as the program sees it, secrets left out'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand to_vfio" -l vm -d 'The GPUs of this VM\'s hostpci lines' -r -f -a "(__gpu_handoff_vms)"
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand to_vfio" -l gpu -d 'One GPU: address (0000:01:00.0, 01:00), index in bus order, or UUID while it is home' -r -f -a "(__gpu_handoff_gpus)"
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand to_vfio" -s n -l dry-run -d 'Show what would be done and why, touch nothing'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand to_vfio" -l json -d 'Print JSON instead of text, where anything is printed'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand to_vfio" -s q -l quiet -d 'Only warnings and errors'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand to_vfio" -s v -l verbose -d 'Say why things are decided'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand to_vfio" -s h -l help -d 'Print help'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand to_nvidia" -l vm -d 'The GPUs of this VM\'s hostpci lines' -r -f -a "(__gpu_handoff_vms)"
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand to_nvidia" -l gpu -d 'One GPU: address (0000:01:00.0, 01:00), index in bus order, or UUID while it is home' -r -f -a "(__gpu_handoff_gpus)"
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand to_nvidia" -s n -l dry-run -d 'Show what would be done and why, touch nothing'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand to_nvidia" -l json -d 'Print JSON instead of text, where anything is printed'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand to_nvidia" -s q -l quiet -d 'Only warnings and errors'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand to_nvidia" -s v -l verbose -d 'Say why things are decided'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand to_nvidia" -s h -l help -d 'Print help'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand handoff" -l vm -d 'The GPUs of this VM\'s hostpci lines' -r -f -a "(__gpu_handoff_vms)"
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand handoff" -l gpu -d 'One GPU: address (0000:01:00.0, 01:00), index in bus order, or UUID while it is home' -r -f -a "(__gpu_handoff_gpus)"
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand handoff" -s n -l dry-run -d 'Show what would be done and why, touch nothing'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand handoff" -l json -d 'Print JSON instead of text, where anything is printed'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand handoff" -s q -l quiet -d 'Only warnings and errors'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand handoff" -s v -l verbose -d 'Say why things are decided'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand handoff" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand plan" -l vm -d 'The GPUs of this VM\'s hostpci lines' -r -f -a "(__gpu_handoff_vms)"
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand plan" -l gpu -d 'One GPU: address (0000:01:00.0, 01:00), index in bus order, or UUID while it is home' -r -f -a "(__gpu_handoff_gpus)"
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand plan" -s n -l dry-run -d 'Show what would be done and why, touch nothing'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand plan" -l json -d 'Print JSON instead of text, where anything is printed'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand plan" -s q -l quiet -d 'Only warnings and errors'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand plan" -s v -l verbose -d 'Say why things are decided'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand plan" -s h -l help -d 'Print help'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand status" -l vm -d 'The GPUs of this VM\'s hostpci lines' -r -f -a "(__gpu_handoff_vms)"
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand status" -l gpu -d 'One GPU: address (0000:01:00.0, 01:00), index in bus order, or UUID while it is home' -r -f -a "(__gpu_handoff_gpus)"
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand status" -s w -l watch -d 'Show it again whenever something changes, until Ctrl-C'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand status" -l groups -d 'Their IOMMU groups: who is in each, and what joins or splits them'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand status" -l plain -d 'Each function with its driver, as the shell script said it'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand status" -s n -l dry-run -d 'Show what would be done and why, touch nothing'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand status" -l json -d 'Print JSON instead of text, where anything is printed'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand status" -s q -l quiet -d 'Only warnings and errors'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand status" -s v -l verbose -d 'Say why things are decided'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand status" -s h -l help -d 'Print help'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand holders" -l vm -d 'The GPUs of this VM\'s hostpci lines' -r -f -a "(__gpu_handoff_vms)"
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand holders" -l gpu -d 'One GPU: address (0000:01:00.0, 01:00), index in bus order, or UUID while it is home' -r -f -a "(__gpu_handoff_gpus)"
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand holders" -s n -l dry-run -d 'Show what would be done and why, touch nothing'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand holders" -l json -d 'Print JSON instead of text, where anything is printed'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand holders" -s q -l quiet -d 'Only warnings and errors'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand holders" -s v -l verbose -d 'Say why things are decided'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand holders" -s h -l help -d 'Print help'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand recover" -l vm -d 'Only what this VM has taken' -r -f -a "(__gpu_handoff_vms)"
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand recover" -l clear-wedged -d 'Forget that a call on this function is stuck: only after the hardware was dealt with' -r -f -a "(__gpu_handoff_gpus)"
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand recover" -l all -d 'GPUs that were taken by hand as well'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand recover" -s n -l dry-run -d 'Show what would be done and why, touch nothing'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand recover" -l json -d 'Print JSON instead of text, where anything is printed'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand recover" -s q -l quiet -d 'Only warnings and errors'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand recover" -s v -l verbose -d 'Say why things are decided'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand recover" -s h -l help -d 'Print help'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand prepare" -l apply -d 'Make the changes; each file is kept as it was'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand prepare" -l revert -d 'Take back what --apply has changed, and nothing else'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand prepare" -s n -l dry-run -d 'Show what would be done and why, touch nothing'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand prepare" -l json -d 'Print JSON instead of text, where anything is printed'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand prepare" -s q -l quiet -d 'Only warnings and errors'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand prepare" -s v -l verbose -d 'Say why things are decided'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand prepare" -s h -l help -d 'Print help'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand attach" -l gpu -d 'Give it this GPU, too, as a whole card: address, index in bus order, or UUID; may be repeated' -r -f -a "(__gpu_handoff_gpus)"
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand attach" -l primary-gpu -d 'The first of them is the VM\'s primary display (x-vga=1)'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand attach" -l mapping -d 'By a resource mapping of exactly that card; where the cluster has more nodes and a mapping, that is so anyway'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand attach" -l accept-policies -d 'Have what uses the GPU now stopped while the VM runs, and started again: /etc/gpu-handoff/conf.d/VMID.toml'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand attach" -s y -l yes -d 'Ask nothing'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand attach" -s n -l dry-run -d 'Show what would be done and why, touch nothing'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand attach" -l json -d 'Print JSON instead of text, where anything is printed'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand attach" -s q -l quiet -d 'Only warnings and errors'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand attach" -s v -l verbose -d 'Say why things are decided'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand attach" -s h -l help -d 'Print help'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand detach" -l gpu -d 'The lines that attach has set for this GPU, too, or for "all"; others are named, and stay; may be repeated' -r -f -a "(__gpu_handoff_gpus)"
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand detach" -l all -d 'Every VM and container of this node that has the hook, and what attach has written for those that have it no more'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand detach" -s y -l yes -d 'Ask nothing'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand detach" -s n -l dry-run -d 'Show what would be done and why, touch nothing'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand detach" -l json -d 'Print JSON instead of text, where anything is printed'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand detach" -s q -l quiet -d 'Only warnings and errors'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand detach" -s v -l verbose -d 'Say why things are decided'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand detach" -s h -l help -d 'Print help'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand history" -l vm -d 'Only those of this VM' -r -f -a "(__gpu_handoff_vms)"
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand history" -l since -d 'Only those since then: 2026-11-21, "2026-11-21 08:00" (UTC), or 90m, 12h, 7d ago' -r -f
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand history" -s n -l dry-run -d 'Show what would be done and why, touch nothing'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand history" -l json -d 'Print JSON instead of text, where anything is printed'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand history" -s q -l quiet -d 'Only warnings and errors'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand history" -s v -l verbose -d 'Say why things are decided'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand history" -s h -l help -d 'Print help'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand check" -l vm -d 'Of all VMs only this one' -r -f -a "(__gpu_handoff_vms)"
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand check" -l ct -d 'Of all containers only this one' -r -f -a "(__gpu_handoff_containers)"
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand check" -l skip -d 'Leave these checks out, by their names' -r -f -a "root\t''
proxmox\t''
qemu-server\t''
virtualisation\t''
secure-boot\t''
lockdown\t''
module-signatures\t''
kernel\t''
gate\t''
vfio\t''
console\t''
iommu\t''
iommu-firmware\t''
iommu-groups\t''
interrupt-remapping\t''
iommu-off\t''
iommu-argument\t''
acs-override\t''
noiommu\t''
gpu\t''
gpu-answers\t''
gpu-calls\t''
gpu-group\t''
gpu-functions\t''
gpu-reset\t''
gpu-known\t''
gpu-sriov\t''
gpu-mig\t''
gpu-nvlink\t''
gpu-regions\t''
gpu-rebar\t''
gpu-width\t''
gpu-speed\t''
gpu-power\t''
gpu-framebuffer\t''
gpu-override\t''
gpu-stranded\t''
gpu-new-id\t''
gpu-usb\t''
gpu-usb-c\t''
gpu-users\t''
driver-installed\t''
driver-loaded\t''
driver-on-disk\t''
driver-library\t''
driver-branch\t''
driver-open\t''
driver-newest-kernel\t''
driver-headers\t''
driver-drm\t''
driver-one-shot\t''
driver-smi\t''
nouveau\t''
known-bad\t''
dkms\t''
vfio-ids\t''
blacklist\t''
install-false\t''
softdep\t''
modules-load\t''
firmware-framebuffer\t''
cmdline\t''
configured\t''
initramfs-age\t''
initramfs\t''
proxmenux\t''
driverctl\t''
udev-rules\t''
scripts\t''
snippets\t''
hook-link\t''
hook-executable\t''
hook-storage\t''
hook-vms\t''
hook-containers\t''
hook-nodes\t''
vm\t''
vm-hostpci\t''
vm-machine\t''
vm-bios\t''
vm-cpu\t''
vm-hiding\t''
vm-x-vga\t''
vm-balloon\t''
vm-memory\t''
vm-same-gpu\t''
vm-args\t''
vm-order\t''
vm-backup\t''
vm-ha\t''
vm-mapping\t''
vm-reserved\t''
ct\t''
ct-driver\t''
ct-nodes\t''
ct-numbers\t''
ct-cgroup1\t''
docker\t''
settings\t''
records\t''
history\t''
room\t''
units\t''"
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand check" -l full -d 'What takes seconds, too: the initramfs, DKMS'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand check" -l list -d 'List the checks'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand check" -s n -l dry-run -d 'Show what would be done and why, touch nothing'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand check" -l json -d 'Print JSON instead of text, where anything is printed'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand check" -s q -l quiet -d 'Only warnings and errors'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand check" -s v -l verbose -d 'Say why things are decided'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand check" -s h -l help -d 'Print help'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand report" -s o -l output -d 'Write it there, not to gpu-handoff-report-DATE-TIME.tar.gz here; nothing is overwritten' -r -F
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand report" -l replay -d 'Run check and plan on the host of this report' -r -F
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand report" -l vm -d 'Of all its VMs only this one' -r -f -a "(__gpu_handoff_vms)"
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand report" -l list -d 'Only list what would be in it'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand report" -s n -l dry-run -d 'Show what would be done and why, touch nothing'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand report" -l json -d 'Print JSON instead of text, where anything is printed'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand report" -s q -l quiet -d 'Only warnings and errors'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand report" -s v -l verbose -d 'Say why things are decided'
complete -c gpu-handoff -n "__fish_gpu_handoff_using_subcommand report" -s h -l help -d 'Print help (see more with \'--help\')'
