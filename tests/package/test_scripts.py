"""The maintainer scripts, by dpkg itself, on an overlay over this machine's own files with stand-ins for Proxmox's tools.

PACKAGE in the environment is the package. What a removal leaves is read off the overlay: every file that differs from
the machine's is one that we have made, changed or removed. In the lab the same is done on a host with a VM and a GPU.

    PACKAGE=target/package/gpu-handoff_*.deb python3 -m unittest -v tests/package/test_scripts.py
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import trees  # noqa: E402

LINK = "/var/lib/vz/snippets/gpu-handoff"
PATIENCE = 300.0
# qm and pct: they change the config, unless a file says that they cannot. pvesm: two storages.
STAND_IN = """#!/bin/sh
conf=/etc/pve/$FOLDER/$2.conf
[ "$1 $3 $4" = "set --delete hookscript" ] || exit 9
[ ! -e "/lab/fails-$2" ] || { echo "trying ..."; cat "/lab/fails-$2"; exit 255; } >&2
echo "$0 $*" >>/lab/called
sed -i '/^hookscript:/d' "$conf"
"""
PVESM = """#!/bin/sh
[ "$1" = path ] || exit 9
case $2 in
local:*) echo "/var/lib/vz/${2#local:}" ;;
other:*) echo "/mnt/other/${2#other:}" ;;
*) echo "storage '${2%%:*}' does not exist" >&2; exit 255 ;;
esac
"""
PROXMOX = f"""
mkdir -p /lab /var/lib/vz /etc/pve/qemu-server /etc/pve/lxc /usr/local/sbin
cat >/usr/local/sbin/qm <<'END'
{STAND_IN.replace("$FOLDER", "qemu-server")}END
cat >/usr/local/sbin/pct <<'END'
{STAND_IN.replace("$FOLDER", "lxc")}END
cat >/usr/local/sbin/pvesm <<'END'
{PVESM}END
chmod 755 /usr/local/sbin/*
PATH=/usr/local/sbin:$PATH
vm() {{ printf 'memory: 512\\nhookscript: %s\\n' "$2" >/etc/pve/qemu-server/$1.conf; }}
ct() {{ printf 'arch: amd64\\nhookscript: %s\\n' "$2" >/etc/pve/lxc/$1.conf; }}
"""
HEAD = f"""
set -eu
link={LINK}
die() {{ echo "FAILED: $*" >&2; exit 1; }}
is() {{ [ "$1" = "$2" ] || die "$3: is '$1', should be '$2'"; }}
do_dpkg() {{ dpkg --force-depends "$@" >/dpkg.out 2>&1 || {{ cat /dpkg.out >&2; die "dpkg $*"; }}; }}
install() {{ do_dpkg --install /new.deb; }}
says() {{ grep -qF "$1" /dpkg.out || {{ cat /dpkg.out >&2; die "not said: $1"; }}; }}
"""


def packed_as(version: str, package: Path, folder: Path) -> Path:
    """The same package under another version."""
    tree, packed = folder / "repacked", folder / f"{version}.deb"
    subprocess.run(["dpkg-deb", "--raw-extract", package, tree], check=True)
    control = tree / "DEBIAN/control"
    lines = control.read_text().splitlines()
    control.write_text("".join(f"Version: {version}\n" if line.startswith("Version:") else f"{line}\n" for line in lines))
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", tree, packed], check=True, stdout=subprocess.DEVNULL)
    shutil.rmtree(tree)
    return packed


class Scripts(unittest.TestCase):
    """Each runs a script as root of a machine of its own."""

    def setUp(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="gpu-handoff-scripts-"))
        self.addCleanup(shutil.rmtree, self.folder)
        # An overlay on an overlay cannot be the upper one: a container's root is such.
        subprocess.run(["mount", "-t", "tmpfs", "tmp", self.folder], check=True)
        self.addCleanup(subprocess.run, ["umount", "--lazy", self.folder], check=True)
        self.package = Path(os.environ["PACKAGE"]).resolve()

    def on_a_machine(self, script: str, proxmox: bool = True) -> None:
        """Runs a script, and fails with what it printed if it fails."""
        files = {"new.deb": self.package, "old.deb": packed_as("0.0.9", self.package, self.folder)}
        command = trees.on_overlay(Path("/"), self.folder, ["/bin/sh", "-c", HEAD + (PROXMOX if proxmox else "") + script],
                                   files)
        ran = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        self.assertEqual(ran.returncode, 0, ran.stdout + ran.stderr)

    def left(self) -> set[str]:
        """What differs from the machine, but for what dpkg itself writes and what the test brought."""
        upper = self.folder / "upper"
        ours = ("/dpkg.out", "/new.deb", "/old.deb", "/var/lib/dpkg/", "/var/log/", "/lab/", "/usr/local/sbin/", "/etc/pve/",
                "/var/cache/", "/before")
        found = {"/" + str(path.relative_to(upper)) for path in upper.rglob("*") if not path.is_dir()}
        return {path for path in found if not path.startswith(ours)}

    def test_no_proxmox_and_no_systemd_is_one_line_and_no_failure(self) -> None:
        self.on_a_machine("""
            rm -rf /var/lib/vz
            install; is "$(grep -c '^gpu-handoff:' /dpkg.out)" 1 "lines"; says "no /var/lib/vz/snippets here"
            [ ! -e /var/lib/vz ] || die "a folder was made"
            do_dpkg --purge gpu-handoff; is "$(grep -c '^gpu-handoff:' /dpkg.out || true)" 0 "lines"
        """, proxmox=False)
        self.assertEqual(self.left(), set())

    def test_the_link_is_made_once_and_goes(self) -> None:
        self.on_a_machine("""
            for round in 1 2; do install; is "$(readlink $link)" /usr/sbin/gpu-handoff "the link"; done
            is "$(grep -c '^gpu-handoff:' /dpkg.out || true)" 0 "lines"
            [ -e /etc/systemd/system/multi-user.target.wants/gpu-handoff-recover.service ] || die "not enabled"
            do_dpkg --remove gpu-handoff; [ ! -L $link ] || die "the link is still there"
            [ -d /var/lib/gpu-handoff ] || die "the state went at removal"
            install; do_dpkg --purge gpu-handoff
            [ ! -e /var/lib/vz/snippets ] || die "the folder that we have made stays"
        """)
        self.assertEqual(self.left(), set())

    def test_a_folder_of_proxmoxs_stays_and_so_does_what_is_in_ours(self) -> None:
        self.on_a_machine("""
            mkdir /var/lib/vz/snippets; install; do_dpkg --purge gpu-handoff; rmdir /var/lib/vz/snippets
            install; echo mine >/var/lib/vz/snippets/mine; do_dpkg --purge gpu-handoff; rm -r /var/lib/vz/snippets
        """)
        self.assertEqual(self.left(), set())

    def test_the_administrators_own_file_survives_install_upgrade_and_purge(self) -> None:
        self.on_a_machine("""
            mkdir /var/lib/vz/snippets; printf '#!/bin/sh\\necho mine\\n' >$link; chmod 750 $link; vm 111 local:snippets/gpu-handoff
            before=$(stat -c '%i %a %Y' $link; cat $link)
            for act in "--install /old.deb" "--install /new.deb" "--remove gpu-handoff" "--install /new.deb" "--purge gpu-handoff"
            do do_dpkg $act; is "$(stat -c '%i %a %Y' $link; cat $link)" "$before" "after $act"; done
            grep -q hookscript /etc/pve/qemu-server/111.conf || die "detached from the administrator's own file"
            rm -r /var/lib/vz/snippets
            # A link of the administrator's to elsewhere, and one that leads nowhere.
            for to in /bin/true /nowhere; do
                mkdir /var/lib/vz/snippets; ln -s $to $link; install; says "is not ours"; do_dpkg --purge gpu-handoff
                is "$(readlink $link)" $to "the link"; rm -r /var/lib/vz/snippets; done
        """)
        self.assertEqual(self.left(), set())

    def test_removal_detaches_what_is_ours_and_nothing_else(self) -> None:
        self.on_a_machine("""
            install; mkdir -p /mnt/other/snippets; ln -s /usr/sbin/gpu-handoff /mnt/other/snippets/gpu
            vm 111 local:snippets/gpu-handoff; vm 112 other:snippets/gpu; vm 113 local:snippets/mine.pl; vm 114 gone:snippets/gpu-handoff
            printf 'memory: 1\\n[before]\\nhookscript: local:snippets/mine.pl\\n' >/etc/pve/qemu-server/115.conf
            ct 104 local:snippets/gpu-handoff; printf 'memory: 1\\n' >/etc/pve/qemu-server/116.conf
            do_dpkg --remove gpu-handoff
            is "$(cut -d/ -f5- /lab/called | tr '\\n' ';')" \\
                "qm set 111 --delete hookscript;qm set 112 --delete hookscript;pct set 104 --delete hookscript;" "the calls"
            says "VM 111 has no hookscript any more; it was local:snippets/gpu-handoff"; says "VM 112 has no hookscript"
            says "container 104 has no hookscript"; [ ! -e $link ] || die "something stays"
            rm -r /mnt/other; do_dpkg --purge gpu-handoff
        """)
        self.assertEqual(self.left(), set())

    def test_where_even_that_cannot_be_written_a_link_to_true_stays(self) -> None:
        self.on_a_machine("""
            install; vm 111 local:snippets/gpu-handoff; echo 'no quorum' >/lab/fails-111
            printf '#!/bin/sh\ncase "$*" in *snippets/removed*) exit 1;; esac\nexec /bin/cp "$@"\n' >/usr/local/sbin/cp; chmod 755 /usr/local/sbin/cp
            do_dpkg --remove gpu-handoff; rm /usr/local/sbin/cp
            says "leads to /bin/true now"; $link 111 pre-start || die "it does not start"
            install; is "$(readlink $link)" /usr/sbin/gpu-handoff "installed anew"
            rm /lab/fails-111; qm set 111 --delete hookscript; do_dpkg --purge gpu-handoff; [ ! -L $link ] || die "it stays for nobody"
        """)
        self.assertEqual(self.left(), set())

    def test_a_guest_of_another_node_that_may_come_here_keeps_the_hook(self) -> None:
        self.on_a_machine("""
            install; mkdir -p /etc/pve/nodes/b/qemu-server; echo 'hookscript: local:snippets/gpu-handoff' >/etc/pve/nodes/b/qemu-server/120.conf
            ln -s /usr/sbin/gpu-handoff $link.new; do_dpkg --remove gpu-handoff; says "$link stays, and does nothing"
            [ ! -L $link ] || die "the link leads nowhere"; $link 120 pre-start 2>/dev/null || die "it does not start"
            rm -r /etc/pve/nodes/b $link.new; do_dpkg --purge gpu-handoff; [ ! -e $link ] || die "it stays for nobody"
        """)
        self.assertEqual(self.left(), set())

    def test_what_cannot_be_detached_starts_with_a_hook_that_does_nothing(self) -> None:
        self.on_a_machine("""
            install; vm 111 local:snippets/gpu-handoff; echo 'VM is locked (backup)' >/lab/fails-111
            do_dpkg --remove gpu-handoff
            says "VM 111 still names local:snippets/gpu-handoff: VM is locked (backup). Hint: qm set 111 --delete hookscript"
            says "$link stays, and does nothing"
            [ ! -L $link ] || die "the link is still there"; is "$(wc -l <$link)" 9 "lines of it"
            for phase in pre-start post-start pre-stop post-stop; do $link 111 $phase 2>>/lab/said || die "$phase"; done
            is "$(cat /lab/said)" "gpu-handoff is not installed any more: no GPU is handed over" "what it says"
            do_dpkg --purge gpu-handoff; says "Remove it once none does"; $link 111 pre-start || die "it went"
            install; is "$(readlink $link)" /usr/sbin/gpu-handoff "installed anew"
            do_dpkg --remove gpu-handoff; rm /lab/fails-111; qm set 111 --delete hookscript
            do_dpkg --purge gpu-handoff; [ ! -e $link ] || die "it stays for nobody"
        """)
        self.assertEqual(self.left(), set())

    def test_a_snapshot_that_names_us_can_be_rolled_back_to(self) -> None:
        self.on_a_machine("""
            install; printf 'memory: 1\\n\\n[before]\\nhookscript: local:snippets/gpu-handoff\\n' >/etc/pve/qemu-server/111.conf
            do_dpkg --remove gpu-handoff; [ ! -e /lab/called ] || die "nothing was to be detached"
            $link 111 pre-start || die "the rollback would not start"; rm /etc/pve/qemu-server/111.conf; do_dpkg --purge gpu-handoff
        """)
        self.assertEqual(self.left(), set())

    def test_without_the_cluster_file_system_nobody_knows_and_the_hook_stays(self) -> None:
        self.on_a_machine("""
            install; rmdir /etc/pve/qemu-server /etc/pve/lxc; do_dpkg --remove gpu-handoff; says "$link stays"
            $link 111 pre-start || die "no hook"; mkdir /etc/pve/qemu-server; do_dpkg --purge gpu-handoff
        """)
        self.assertEqual(self.left(), set())

    def test_an_upgrade_detaches_nobody_and_keeps_settings_state_and_the_administrators_choice(self) -> None:
        self.on_a_machine("""
            do_dpkg --install /old.deb; vm 111 local:snippets/gpu-handoff; echo 'gate = "off"' >>/etc/gpu-handoff/config.toml
            mkdir -p /etc/gpu-handoff/conf.d; echo 'way = "unbind"' >/etc/gpu-handoff/conf.d/mine.toml
            mkdir -p /run/gpu-handoff; echo '{}' >/run/gpu-handoff/vm-111.json; echo '{}' >/var/lib/gpu-handoff/history.jsonl
            wanted=/etc/systemd/system/multi-user.target.wants/gpu-handoff-recover.service; rm $wanted
            install
            [ ! -e /lab/called ] || die "detached"; [ -e /run/gpu-handoff/vm-111.json ] || die "the record"
            grep -q '^gate' /etc/gpu-handoff/config.toml || die "settings"; [ -e /var/lib/gpu-handoff/history.jsonl ] || die "history"
            [ -d /etc/gpu-handoff/conf.d ] || die "no folder for the settings of one VM"
            [ ! -e $wanted ] || die "enabled again"; is "$(readlink $link)" /usr/sbin/gpu-handoff "the link"
            do_dpkg --purge gpu-handoff; says "vm-111.json: this GPU stays on vfio-pci until the host restarts"
            [ -e /run/gpu-handoff/vm-111.json ] || die "the record of a GPU that is out is gone"
            [ ! -e /etc/gpu-handoff ] || die "settings stay"
        """)
        self.assertEqual(self.left(), set())

    def test_what_was_stopped_for_a_gpu_that_is_out_is_named_with_what_starts_it(self) -> None:
        """What is not enabled stays down after the next boot, and nobody of ours is there to say so."""
        units = ["ollama.service", "a\\x2db.service", {"container": 104, "unit": "vllm.service"}, {"container": 105},
                 {"client": "docker", "id": "0123456789ab" + "c" * 52}, {"user": 1000, "unit": "x.service"},
                 {"ha_container": 106}, {"driver_use_of": "nvidia-dcgm.service"}]
        record = json.dumps({"version": 1, "modules": ["nvidia"], "units": units, "consoles": ["vtcon1"]}, indent=2)
        empty = json.dumps({"version": 1, "modules": ["nvidia"], "units": [], "consoles": ["vtcon1"]}, indent=2)
        expected = [
            "ollama.service|systemctl start ollama.service",
            "a\\x2db.service|systemctl start 'a\\x2db.service'",
            "vllm.service in container 104|pct exec 104 -- systemctl start vllm.service",
            "container 105|pct start 105",
            "container 0123456789ab|docker start 0123456789ab",
            "x.service of user 1000|systemctl --user --machine=1000@.host start x.service",
        ]
        of = "gpu-handoff: /run/gpu-handoff/vm-111.json:"
        said = [f"{of} {who} was stopped for it. Hint: where it does not run then, {start}"
                for who, start in (line.split("|") for line in expected)]
        said.append(f"{of} container 106 was stopped for it, and HA ignores it. "
                    "Hint: when the host has restarted, pct start 106, then ha-manager set ct:106 --state started")
        lines = "\n".join(said)
        self.on_a_machine(f"""
            install; mkdir -p /run/gpu-handoff
            cat >/run/gpu-handoff/vm-111.json <<'END'\n{record}\nEND
            cat >/run/gpu-handoff/vm-112.json <<'END'\n{empty}\nEND
            cat >/lab/expected <<'END'\n{lines}\nEND
            do_dpkg --remove gpu-handoff; says "vm-112.json: this GPU stays on vfio-pci until the host restarts"
            grep 'was stopped for it' /dpkg.out >/lab/said || die "nobody is named"
            diff /lab/expected /lab/said >&2 || die "not these"
            rm -r /run/gpu-handoff; do_dpkg --purge gpu-handoff
        """)
        self.assertEqual(self.left(), set())

    def test_what_prepare_has_kept_outlives_the_package(self) -> None:
        """Nobody else could take back what it has changed."""
        self.on_a_machine("""
            install; mkdir -p /var/lib/gpu-handoff/prepared; echo '{}' >/var/lib/gpu-handoff/prepared/journal.json
            echo was >/var/lib/gpu-handoff/prepared/0.before; echo x >/var/lib/gpu-handoff/history
            do_dpkg --remove gpu-handoff; says "gpu-handoff prepare --revert"
            do_dpkg --purge gpu-handoff; says "stay in /var/lib/gpu-handoff/prepared"
            is "$(ls /var/lib/gpu-handoff)" prepared "what is kept"; is "$(cat /var/lib/gpu-handoff/prepared/0.before)" was "it"
        """)
        self.assertEqual(self.left(), {"/var/lib/gpu-handoff/prepared/journal.json", "/var/lib/gpu-handoff/prepared/0.before"})

    def test_a_run_at_work_is_waited_for(self) -> None:
        self.on_a_machine("""
            install; mkdir -p /run/gpu-handoff; ( flock 9; : >/lab/holds; sleep 2; : >/lab/done ) 9>/run/gpu-handoff/lock &
            until [ -e /lab/holds ]; do :; done
            do_dpkg --purge gpu-handoff; [ -e /lab/done ] || die "not waited for"
        """)
        self.assertEqual(self.left(), set())

    def test_installed_into_a_folder_nothing_of_this_machine_is_touched(self) -> None:
        self.on_a_machine("""
            vm 111 local:snippets/gpu-handoff; root=/lab/root; mkdir -p $root/var/lib/dpkg/info $root/var/lib/dpkg/updates $root/var/lib/vz
            : >$root/var/lib/dpkg/status; : >$root/var/lib/dpkg/available; find / -xdev -newer /new.deb >/dev/null
            at() { do_dpkg --root=$root --force-script-chrootless "$@"; }
            at --install /new.deb; is "$(readlink $root$link)" /usr/sbin/gpu-handoff "its link"; [ ! -e $link ] || die "our link"
            [ -d $root/var/lib/gpu-handoff ] || die "its folder"
            at --remove gpu-handoff; at --purge gpu-handoff
            [ ! -e /lab/called ] || die "a guest of ours was detached"; [ ! -e $root/etc/gpu-handoff ] || die "settings stay"
            [ ! -L $root$link ] || die "a link that leads nowhere stays"
            at --install /new.deb; mkdir -p $root/etc/pve/qemu-server $root/etc/pve/lxc
            cp /etc/pve/qemu-server/111.conf $root/etc/pve/qemu-server
            at --remove gpu-handoff; at --purge gpu-handoff; says "stays, and does nothing"
            is "$(readlink $root$link)" /usr/../bin/true "the link, for a guest of there that names it"
        """)
        self.assertEqual(self.left(), set())


class Chain(unittest.TestCase):
    """snippets/chain: several hooks for one guest."""

    def run_chain(self, phase: str, statuses: list[int], ours: bool = True) -> tuple[int, list[str]]:
        """Hooks that end so, gpu-handoff (0) the last; the chain's status, and what was called."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            hooks = []
            for number, status in enumerate([*statuses, *([0] if ours else [])]):
                hook = folder / f"hook {number}"
                hook.write_text(f"#!/bin/sh\necho {number} $* >>'{folder}/called'\nexit {status}\n")
                hook.chmod(0o755)
                hooks.append(str(hook))
            text = (Path(__file__).parents[2] / "snippets/chain").read_text()
            last = "" if ours else f"hook {folder}/not-installed\n"
            text = text.replace("hook /usr/sbin/gpu-handoff\n", "".join(f'hook "{hook}"\n' for hook in hooks) + last, 1)
            text = text.replace("/usr/sbin/gpu-handoff", f"{folder}/not-installed")
            (folder / "chain").write_text(text)
            ran = subprocess.run(["sh", folder / "chain", "111", phase], capture_output=True, text=True)
            called = folder / "called"
            return ran.returncode, called.read_text().splitlines() if called.exists() else []

    def test_at_pre_start_the_first_that_fails_ends_it_and_otherwise_all_are_called(self) -> None:
        for phase, statuses, expected, called in [
            ("pre-start", [0, 0], 0, 3),
            ("pre-start", [0, 3], 3, 2),
            ("pre-start", [4, 3], 4, 1),
            ("post-stop", [0, 3], 3, 3),
            ("post-stop", [4, 3], 4, 3),
            ("post-start", [0, 1], 1, 3),
            ("pre-stop", [1, 0], 1, 3),
        ]:
            status, calls = self.run_chain(phase, statuses)
            self.assertEqual((status, calls), (expected, [f"{n} 111 {phase}" for n in range(called)]), (phase, statuses))

    def test_a_hook_that_is_missing_keeps_the_guest_from_starting_but_not_ours_once_it_is_removed(self) -> None:
        self.assertEqual(self.run_chain("pre-start", [0], ours=False), (0, ["0 111 pre-start"]))
        text = (Path(__file__).parents[2] / "snippets/chain").read_text()
        script = text.replace("# hook /var/lib/vz/snippets/another-hook", "hook /nowhere")
        ran = subprocess.run(["sh", "-c", script, "chain", "111", "pre-start"], capture_output=True, text=True)
        self.assertEqual(ran.returncode, 127)
        self.assertIn("/nowhere", ran.stderr)


if __name__ == "__main__":
    unittest.main()
