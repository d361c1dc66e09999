// SPDX-License-Identifier: GPL-2.0
/*
 * nvidia.ko: the character devices of major 195, and the nodes in /dev.
 *
 * The real driver makes no nodes: udev rules or the setuid nvidia-modprobe do, from /proc. Here the driver core makes
 * them (a simplification), unless no_nodes=1.
 */
#include <linux/cdev.h>
#include <linux/device.h>
#include <linux/fs.h>
#include <linux/ioctl.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/slab.h>

#include "compat.h"
#include "nv_stub.h"

#define NV_IOCTL_MAGIC			'F'	/* kernel-open/common/inc/nv-ioctl-numbers.h */
#define NV_ESC_ATTACH_GPUS_TO_FD	212

static struct class *nv_class;
static DEFINE_MUTEX(attach_lock);
static const struct file_operations *modeset_fops;
static DEFINE_MUTEX(modeset_fops_lock);

/* /dev/nvidia-modeset has a minor of this major but belongs to nvidia-modeset.ko: its module is the one held. */
static int open_modeset(struct inode *inode, struct file *file)
{
	const struct file_operations *fops;

	mutex_lock(&modeset_fops_lock);
	fops = fops_get(modeset_fops);
	mutex_unlock(&modeset_fops_lock);
	if (!fops)
		return -ENODEV;
	replace_fops(file, fops);
	return 0;
}

/* What one open file uses: nvidiaN its own GPU, nvidiactl those that were attached to it. */
struct nv_file {
	bool ctl;
	struct nv_gpu *gpus[NV_MAX_GPUS];
};

/* An open of nvidiactl counts for the module only, one of nvidiaN for its GPU as well (nvidia_open, nvidia_ctl_open). */
static int nv_open(struct inode *inode, struct file *file)
{
	unsigned int minor = iminor(inode);
	struct nv_file *nvf;

	if (minor == NV_MODESET_MINOR)
		return open_modeset(inode, file);
	nvf = kzalloc(sizeof(*nvf), GFP_KERNEL);
	if (!nvf)
		return -ENOMEM;
	nvf->ctl = minor == NV_CTL_MINOR;
	if (!nvf->ctl)
		nvf->gpus[0] = nv_gpu_use(minor);
	if (!nvf->ctl && !nvf->gpus[0]) {
		kfree(nvf);
		return -ENODEV;
	}
	file->private_data = nvf;
	return 0;
}

static int nv_release(struct inode *inode, struct file *file)
{
	struct nv_file *nvf = file->private_data;
	unsigned int i;

	for (i = 0; i < NV_MAX_GPUS; i++)
		if (nvf->gpus[i])
			nv_gpu_unuse(nvf->gpus[i]);
	kfree(nvf);
	return 0;
}

/*
 * NV_ESC_ATTACH_GPUS_TO_FD on nvidiactl raises the usage count of GPUs whose nodes the process need not have open
 * (nvidia_ioctl). The stub attaches all of them and reads no argument.
 */
static long nv_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct nv_file *nvf = file->private_data;
	unsigned int i;

	if (_IOC_TYPE(cmd) != NV_IOCTL_MAGIC || _IOC_NR(cmd) != NV_ESC_ATTACH_GPUS_TO_FD || !nvf->ctl)
		return -EINVAL;
	mutex_lock(&attach_lock);
	for (i = 0; i < NV_MAX_GPUS; i++)
		if (!nvf->gpus[i])
			nvf->gpus[i] = nv_gpu_use(i);
	mutex_unlock(&attach_lock);
	return 0;
}

/* A mapping keeps its file, and so the GPU, in use after the descriptor was closed. There is nothing to see in it. */
static vm_fault_t nv_fault(struct vm_fault *vmf)
{
	return VM_FAULT_SIGBUS;
}

static const struct vm_operations_struct nv_vm_ops = { .fault = nv_fault };

static int nv_mmap(struct file *file, struct vm_area_struct *vma)
{
	vma->vm_ops = &nv_vm_ops;
	nv_delay(nv_delay_mmap_ms);
	return 0;
}

static const struct file_operations nv_fops = {
	.owner = THIS_MODULE,
	.open = nv_open,
	.release = nv_release,
	.unlocked_ioctl = nv_ioctl,
	.mmap = nv_mmap,
};

int nv_register_modeset_fops(const struct file_operations *fops)
{
	mutex_lock(&modeset_fops_lock);
	modeset_fops = fops;
	mutex_unlock(&modeset_fops_lock);
	nv_make_node(MKDEV(NV_MAJOR, NV_MODESET_MINOR), "nvidia-modeset");
	return 0;
}
EXPORT_SYMBOL(nv_register_modeset_fops);

void nv_unregister_modeset_fops(void)
{
	nv_drop_node(MKDEV(NV_MAJOR, NV_MODESET_MINOR));
	mutex_lock(&modeset_fops_lock);
	modeset_fops = NULL;
	mutex_unlock(&modeset_fops_lock);
}
EXPORT_SYMBOL(nv_unregister_modeset_fops);

/* Mode 0666, as nvidia-modprobe gives it by default. */
static char *devnode(nv_devnode_arg *dev, umode_t *mode)
{
	if (mode)
		*mode = 0666;
	return NULL;
}

struct device *nv_make_node(dev_t devt, const char *name)
{
	return nv_no_nodes ? NULL : device_create(nv_class, NULL, devt, NULL, "%s", name);
}
EXPORT_SYMBOL(nv_make_node);

/* Harmless where there is none: no_nodes may have changed in between. */
void nv_drop_node(dev_t devt)
{
	device_destroy(nv_class, devt);
}
EXPORT_SYMBOL(nv_drop_node);

void nv_node_create(struct nv_gpu *gpu)
{
	char name[16];

	snprintf(name, sizeof(name), "nvidia%u", gpu->minor);
	nv_make_node(MKDEV(NV_MAJOR, gpu->minor), name);
}

void nv_node_destroy(struct nv_gpu *gpu)
{
	nv_drop_node(MKDEV(NV_MAJOR, gpu->minor));
}

int nv_chardev_init(void)
{
	int rc = register_chrdev(NV_MAJOR, "nvidia", &nv_fops);

	if (rc < 0)
		return rc;
	nv_class = nv_class_create("nvidia_stub");
	if (IS_ERR(nv_class)) {
		unregister_chrdev(NV_MAJOR, "nvidia");
		return PTR_ERR(nv_class);
	}
	nv_class->devnode = devnode;
	nv_make_node(MKDEV(NV_MAJOR, NV_CTL_MINOR), "nvidiactl");
	return 0;
}

void nv_chardev_exit(void)
{
	nv_drop_node(MKDEV(NV_MAJOR, NV_CTL_MINOR));
	class_destroy(nv_class);
	unregister_chrdev(NV_MAJOR, "nvidia");
}
