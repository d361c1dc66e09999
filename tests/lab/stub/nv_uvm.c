// SPDX-License-Identifier: GPL-2.0
/*
 * Stand-in for nvidia-uvm.ko: a character device with a major of its own, chosen by the kernel at load, so that it may
 * differ after a reload (uvm_init_character_device, kernel-open/nvidia-uvm/uvm.c: alloc_chrdev_region).
 *
 * The real module raises the usage count of each GPU that a process registers. Here every open takes those of all GPUs
 * where uvm_ref=1: a CUDA process normally registers all that it sees.
 */
#include <linux/cdev.h>
#include <linux/fs.h>
#include <linux/module.h>
#include <linux/slab.h>

#include "nv_stub.h"

#define UVM_MINORS 2	/* nvidia-uvm and nvidia-uvm-tools */

static bool uvm_ref;
module_param(uvm_ref, bool, 0644);
MODULE_PARM_DESC(uvm_ref, "an open nvidia-uvm uses every GPU");

static dev_t uvm_devt;
static struct cdev uvm_cdev;

struct uvm_file {
	struct nv_gpu *gpus[NV_MAX_GPUS];
};

static int uvm_open(struct inode *inode, struct file *file)
{
	struct uvm_file *uvm = kzalloc(sizeof(*uvm), GFP_KERNEL);
	unsigned int i;

	if (!uvm)
		return -ENOMEM;
	for (i = 0; uvm_ref && i < NV_MAX_GPUS; i++)
		uvm->gpus[i] = nv_gpu_use(i);
	file->private_data = uvm;
	return 0;
}

static int uvm_release(struct inode *inode, struct file *file)
{
	struct uvm_file *uvm = file->private_data;
	unsigned int i;

	for (i = 0; i < NV_MAX_GPUS; i++)
		if (uvm->gpus[i])
			nv_gpu_unuse(uvm->gpus[i]);
	kfree(uvm);
	return 0;
}

static const struct file_operations uvm_fops = {
	.owner = THIS_MODULE,
	.open = uvm_open,
	.release = uvm_release,
};

static int __init uvm_init(void)
{
	int rc = alloc_chrdev_region(&uvm_devt, 0, UVM_MINORS, "nvidia-uvm");

	if (rc)
		return rc;
	cdev_init(&uvm_cdev, &uvm_fops);
	uvm_cdev.owner = THIS_MODULE;
	rc = cdev_add(&uvm_cdev, uvm_devt, UVM_MINORS);
	if (rc) {
		unregister_chrdev_region(uvm_devt, UVM_MINORS);
		return rc;
	}
	nv_make_node(uvm_devt, "nvidia-uvm");
	nv_make_node(uvm_devt + 1, "nvidia-uvm-tools");
	return 0;
}

static void __exit uvm_exit(void)
{
	nv_drop_node(uvm_devt + 1);
	nv_drop_node(uvm_devt);
	cdev_del(&uvm_cdev);
	unregister_chrdev_region(uvm_devt, UVM_MINORS);
}

module_init(uvm_init);
module_exit(uvm_exit);
MODULE_LICENSE("Dual MIT/GPL");
MODULE_VERSION(NV_RELEASE);
MODULE_DESCRIPTION("stand-in for NVIDIA's nvidia-uvm.ko");
