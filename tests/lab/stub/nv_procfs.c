// SPDX-License-Identifier: GPL-2.0
/*
 * nvidia.ko: /proc/driver/nvidia/{version,params} and gpus/<BDF>/{information,power}, in the layout of
 * kernel-open/nvidia/nv-procfs.c.
 */
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/seq_file.h>

#include "nv_stub.h"

static struct proc_dir_entry *root, *gpus_dir;

/* rm_get_device_name; the UUID is made of the address, so that it stays with the card. */
static int information_show(struct seq_file *s, void *unused)
{
	struct nv_gpu *gpu = s->private;
	struct pci_dev *pdev = gpu->pdev;

	seq_puts(s, "Model: \t\t NVIDIA GeForce RTX 3090\n");
	seq_printf(s, "IRQ:   \t\t %d\n", pdev->irq);
	seq_printf(s, "GPU UUID: \t GPU-57ab0000-0000-4000-8000-%08x%04x\n", pci_domain_nr(pdev->bus), pci_dev_id(pdev));
	seq_puts(s, "Video BIOS: \t 94.02.42.00.b2\n");
	seq_puts(s, "Bus Type: \t PCIe\n");
	seq_puts(s, "DMA Size: \t 47 bits\n");
	seq_puts(s, "DMA Mask: \t 0x7fffffffffff\n");
	seq_printf(s, "Bus Location: \t %s\n", pci_name(pdev));
	seq_printf(s, "Device Minor: \t %u\n", gpu->minor);
	seq_printf(s, "GPU Firmware: \t %s\n", nv_version);
	seq_puts(s, "GPU Excluded:\t No\n");
	return 0;
}

static int power_show(struct seq_file *s, void *unused)
{
	seq_puts(s, "Runtime D3 status:          Disabled by default\n");
	seq_puts(s, "Video Memory:               Active\n\n");
	seq_puts(s, "GPU Hardware Support:\n");
	seq_puts(s, " Video Memory Self Refresh: Supported\n");
	seq_puts(s, " Video Memory Off:          Supported\n\n");
	seq_puts(s, "Power Limits:\n");
	seq_puts(s, " Default:                   N/A milliwatts\n");
	seq_puts(s, " GPU Boost:                 N/A milliwatts\n");
	return 0;
}

static int version_show(struct seq_file *s, void *unused)
{
	seq_printf(s, "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  %s  Release Build  (stub)\n", nv_version);
	seq_puts(s, "GCC version:  gcc version 14.2.0 (Debian 14.2.0-19) \n");
	return 0;
}

/* A few of the lines that tools read: nvidia-modprobe takes the nodes' owner and mode from here. */
static int params_show(struct seq_file *s, void *unused)
{
	seq_puts(s, "ResmanDebugLevel: 4294967295\n");
	seq_printf(s, "ModifyDeviceFiles: %u\n", 1);
	seq_puts(s, "DeviceFileUID: 0\nDeviceFileGID: 0\nDeviceFileMode: 438\n");
	seq_puts(s, "PreserveVideoMemoryAllocations: 0\nDynamicPowerManagement: 3\n");
	seq_puts(s, "RegistryDwords: \"\"\nRegistryDwordsPerDevice: \"\"\nRmMsg: \"\"\nGpuBlacklist: \"\"\n");
	seq_puts(s, "TemporaryFilePath: \"\"\nExcludedGpus: \"\"\n");
	return 0;
}

void nv_procfs_add(struct nv_gpu *gpu)
{
	gpu->proc = proc_mkdir(pci_name(gpu->pdev), gpus_dir);
	if (!gpu->proc)
		return;
	proc_create_single_data("information", 0444, gpu->proc, information_show, gpu);
	proc_create_single_data("power", 0444, gpu->proc, power_show, gpu);
}

/* Waits for readers, so that none is left with a pointer to the GPU. */
void nv_procfs_remove(struct nv_gpu *gpu)
{
	proc_remove(gpu->proc);
	gpu->proc = NULL;
}

int nv_procfs_init(void)
{
	root = proc_mkdir("driver/nvidia", NULL);
	if (!root)
		return -ENOMEM;
	gpus_dir = proc_mkdir("gpus", root);
	proc_create_single("version", 0444, root, version_show);
	proc_create_single("params", 0444, root, params_show);
	return 0;
}

void nv_procfs_exit(void)
{
	proc_remove(root);
}
