// SPDX-License-Identifier: GPL-2.0
/*
 * Stand-in for nvidia.ko: loading and unloading (nvidia_init_module and nvidia_exit_module in kernel-open/nvidia/nv.c).
 */
#include <linux/module.h>
#include <linux/pci.h>

#include "nv_stub.h"

static unsigned int gpus_on_bus(void)
{
	struct pci_dev *pdev = NULL;
	unsigned int count = 0;

	while ((pdev = pci_get_device(PCI_VENDOR_ID_NVIDIA, PCI_ANY_ID, pdev)))
		if ((pdev->class >> 8) == PCI_CLASS_DISPLAY_VGA || (pdev->class >> 8) == PCI_CLASS_DISPLAY_3D)
			count++;
	return count;
}

/* The tests and the words of nvidia_init_module once its drivers are registered. */
static int check_probed(void)
{
	unsigned int count = gpus_on_bus();

	if (nv_probed < count) {
		pr_err("NVRM: The NVIDIA probe routine was not called for %u device(s).\n", count - nv_probed);
		pr_err("NVRM: This can occur when another driver was loaded and\n"
		       "NVRM: obtained ownership of the NVIDIA device(s).\n");
	}
	if (!nv_probed) {
		pr_err("NVRM: No NVIDIA devices probed.\n");
		return -ENODEV;
	}
	if (!nv_initialized) {
		pr_err("NVRM: None of the NVIDIA devices were initialized.\n");
		return -ENODEV;
	}
	return 0;
}

static int __init nv_init(void)
{
	int rc;

	nv_delay(nv_delay_init_ms);
	rc = nv_procfs_init();
	if (rc)
		return rc;
	rc = nv_chardev_init();
	if (rc)
		goto err_proc;
	rc = pci_register_driver(&nv_pci_driver);
	if (rc)
		goto err_chardev;
	rc = check_probed();
	if (rc && nv_need_gpu)
		goto err_pci;
	pr_info("NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  %s  Release Build  (stub)\n", nv_version);
	return 0;

err_pci:
	pci_unregister_driver(&nv_pci_driver);
err_chardev:
	nv_chardev_exit();
err_proc:
	nv_procfs_exit();
	return rc;
}

static void __exit nv_exit(void)
{
	nv_delay(nv_delay_exit_ms);
	pci_unregister_driver(&nv_pci_driver);
	nv_chardev_exit();
	nv_procfs_exit();
}

module_init(nv_init);
module_exit(nv_exit);
MODULE_LICENSE("Dual MIT/GPL");
MODULE_VERSION(NV_RELEASE);
MODULE_DESCRIPTION("stand-in for NVIDIA's nvidia.ko");
