// SPDX-License-Identifier: GPL-2.0
/*
 * Stand-in for nvidia-modeset.ko: /dev/nvidia-modeset (195:254), and the link between nvidia-drm and nvidia.
 */
#include <linux/fs.h>
#include <linux/module.h>

#include "nv_stub.h"

static int nvkms_open(struct inode *inode, struct file *file)
{
	return 0;
}

static const struct file_operations nvkms_fops = {
	.owner = THIS_MODULE,
	.open = nvkms_open,
};

int nvkms_register(const struct nv_modeset_callbacks *callbacks)
{
	return nv_set_modeset_callbacks(callbacks);
}
EXPORT_SYMBOL(nvkms_register);

void nvkms_unregister(void)
{
	nv_set_modeset_callbacks(NULL);
}
EXPORT_SYMBOL(nvkms_unregister);

/* Through here, so that nvidia-drm holds nvidia-modeset and not nvidia itself: the chain that lsmod shows. */
struct nv_gpu *nvkms_gpu_use(unsigned int minor)
{
	return nv_gpu_use(minor);
}
EXPORT_SYMBOL(nvkms_gpu_use);

void nvkms_gpu_unuse(struct nv_gpu *gpu)
{
	nv_gpu_unuse(gpu);
}
EXPORT_SYMBOL(nvkms_gpu_unuse);

static int __init nvkms_init(void)
{
	return nv_register_modeset_fops(&nvkms_fops);
}

static void __exit nvkms_exit(void)
{
	nv_unregister_modeset_fops();
}

module_init(nvkms_init);
module_exit(nvkms_exit);
MODULE_LICENSE("Dual MIT/GPL");
MODULE_VERSION(NV_RELEASE);
MODULE_DESCRIPTION("stand-in for NVIDIA's nvidia-modeset.ko");
