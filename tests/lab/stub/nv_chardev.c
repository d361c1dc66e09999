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
#include <linux/module.h>
#include <linux/mutex.h>

#include "compat.h"
#include "nv_stub.h"

static struct class *nv_class;
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

/* nvidiactl counts for the module only, nvidiaN for its GPU as well (nvidia_open, nvidia_ctl_open). */
static int nv_open(struct inode *inode, struct file *file)
{
	unsigned int minor = iminor(inode);

	file->private_data = NULL;
	if (minor == NV_CTL_MINOR)
		return 0;
	if (minor == NV_MODESET_MINOR)
		return open_modeset(inode, file);
	file->private_data = nv_gpu_use(minor);
	return file->private_data ? 0 : -ENODEV;
}

static int nv_release(struct inode *inode, struct file *file)
{
	if (file->private_data)
		nv_gpu_unuse(file->private_data);
	return 0;
}

static const struct file_operations nv_fops = {
	.owner = THIS_MODULE,
	.open = nv_open,
	.release = nv_release,
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
static char *nv_devnode(umode_t *mode)
{
	if (mode)
		*mode = 0666;
	return NULL;
}

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 2, 0)
static char *devnode(const struct device *dev, umode_t *mode) { return nv_devnode(mode); }
#else
static char *devnode(struct device *dev, umode_t *mode) { return nv_devnode(mode); }
#endif

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
