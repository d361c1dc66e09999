// SPDX-License-Identifier: GPL-2.0
/*
 * nvidia.ko: probe and remove (kernel-open/nvidia/nv-pci.c).
 */
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/slab.h>

#include "nv_stub.h"

#define PMC_BOOT_0	0	/* BAR0 offset of the chip id */
#define BOOT_0_BYTES	4
#define DMA_BITS	47	/* what the real driver sets on an RTX 3090 */

unsigned int nv_probed;		/* num_probed_nv_devices */
unsigned int nv_initialized;	/* num_nv_devices */

/* A card that fell off the bus reads all ones. */
static int check_chip(struct pci_dev *pdev)
{
	void __iomem *bar0 = pci_iomap(pdev, 0, PAGE_SIZE);
	u32 boot0;

	if (!bar0)
		return -EPERM;
	boot0 = ioread32(bar0 + PMC_BOOT_0);
	pci_iounmap(pdev, bar0);
	if (boot0 == ~0u) {
		pci_err(pdev, "NVRM: The NVIDIA GPU %s has fallen off the bus and is not responding to commands.\n",
			pci_name(pdev));
		return -EPERM;
	}
	return 0;
}

static int nv_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct nv_gpu *gpu;

	nv_probed++;
	nv_delay(nv_delay_probe_ms);
	if (nv_probe_should_fail()) {
		pci_err(pdev, "NVRM: rm_init_adapter failed (stub: probe_fail)\n");
		return -EPERM;
	}

	gpu = kzalloc(sizeof(*gpu), GFP_KERNEL);
	if (!gpu)
		return -ENOMEM;
	kref_init(&gpu->ref);
	gpu->pdev = pdev;

	if (pci_enable_device(pdev))
		goto err_free;
	if (pci_request_regions(pdev, "nvidia")) {
		pci_err(pdev, "NVRM: request_mem_region failed\n");
		goto err_disable;
	}
	pci_set_master(pdev);
	dma_set_mask(&pdev->dev, DMA_BIT_MASK(DMA_BITS));
	if (check_chip(pdev) || nv_gpu_add(gpu))
		goto err_release;

	pci_set_drvdata(pdev, gpu);
	nv_procfs_add(gpu);
	nv_node_create(gpu);
	nv_modeset_probe(gpu);
	nv_initialized++;
	return 0;

err_release:
	pci_clear_master(pdev);
	pci_release_regions(pdev);
err_disable:
	pci_disable_device(pdev);
err_free:
	nv_gpu_put(gpu);
	return -EPERM;		/* nvidia_probe's -1 */
}

/* The loop without a limit: it sits in the sysfs write with the device lock held, in D state, deaf to SIGKILL. */
static void wait_until_unused(struct nv_gpu *gpu)
{
	if (!atomic_read(&gpu->usage) || READ_ONCE(nv_remove_mode) == NV_REMOVE_NONE)
		return;

	pr_err("NVRM: Attempting to remove device %s with non-zero usage count!\n", pci_name(gpu->pdev));
	while (atomic_read(&gpu->usage) && READ_ONCE(nv_remove_mode) != NV_REMOVE_NONE)
		nv_delay(500);
	pr_err("NVRM: Continuing with GPU removal for device %s\n", pci_name(gpu->pdev));
}

static void nv_remove(struct pci_dev *pdev)
{
	struct nv_gpu *gpu = pci_get_drvdata(pdev);

	nv_modeset_remove(gpu);
	if (READ_ONCE(nv_remove_mode) == NV_REMOVE_FOREVER)
		nv_gpu_forget(gpu);
	wait_until_unused(gpu);
	nv_gpu_forget(gpu);

	nv_delay(nv_delay_remove_ms);
	nv_node_destroy(gpu);
	nv_delay(nv_proc_late_ms);
	nv_procfs_remove(gpu);
	pci_clear_master(pdev);
	pci_release_regions(pdev);
	pci_disable_device(pdev);
	pci_set_drvdata(pdev, NULL);
	nv_gpu_put(gpu);
}

/* By class, not by device id (nv_pci_table): udev loads the module for any VGA or 3D controller of the vendor. */
static const struct pci_device_id nv_ids[] = {
	{ PCI_DEVICE(PCI_VENDOR_ID_NVIDIA, PCI_ANY_ID), .class = PCI_CLASS_DISPLAY_VGA << 8, .class_mask = ~0u },
	{ PCI_DEVICE(PCI_VENDOR_ID_NVIDIA, PCI_ANY_ID), .class = PCI_CLASS_DISPLAY_3D << 8, .class_mask = ~0u },
	{ }
};
MODULE_DEVICE_TABLE(pci, nv_ids);

struct pci_driver nv_pci_driver = {
	.name = "nvidia",
	.id_table = nv_ids,
	.probe = nv_probe,
	.remove = nv_remove,
};
