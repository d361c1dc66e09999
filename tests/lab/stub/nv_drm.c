// SPDX-License-Identifier: GPL-2.0
/*
 * Stand-in for nvidia-drm.ko: which GPUs have a DRM device, and what that means for their usage count
 * (kernel-open/nvidia-drm/nvidia-drm-drv.c).
 */
#include <linux/aperture.h>
#include <linux/console.h>
#include <linux/err.h>
#include <linux/list.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include <linux/tty.h>
#include <linux/vt_kern.h>	/* brings console_struct.h with what that needs */
#include <linux/workqueue.h>

#include "nv_drm.h"
#include "nv_stub.h"

/* Off by default in the real driver up to 590; distributions and users that want a console turn it on. */
static bool modeset = true;
module_param(modeset, bool, 0444);
MODULE_PARM_DESC(modeset, "make a DRM device for each GPU");

static bool fbdev = true;
module_param(fbdev, bool, 0444);
MODULE_PARM_DESC(fbdev, "with modeset=1: a framebuffer for each GPU");

/*
 * 1: up to 580. The DRM device holds its GPU: the usage count is at least 1 until nvidia_drm is unloaded, so an unbind
 *    waits for that. A GPU that is bound later gets no DRM device.
 * 0: as from 590.44, where remove() first tells nvidia-modeset and nvidia-drm to drop the GPU (nvidia_modeset_remove).
 *    A GPU that is bound later gets its DRM device.
 */
static bool modeset_ref = true;
module_param(modeset_ref, bool, 0644);
MODULE_PARM_DESC(modeset_ref, "the DRM device holds its GPU until nvidia_drm is unloaded");

/* Whether a console on the framebuffer keeps the real module loaded is not settled: see pin_look(). */
static bool fbcon_pin;
module_param(fbcon_pin, bool, 0444);
MODULE_PARM_DESC(fbcon_pin, "nvidia_drm cannot be unloaded while a text console is bound");

struct nv_drm {
	struct list_head node;
	struct nv_gpu *gpu;		/* used, not only referenced */
	struct drm_device *dev;
};

static LIST_HEAD(devices);
static DEFINE_MUTEX(devices_lock);

static struct nv_drm *find(struct nv_gpu *gpu)
{
	struct nv_drm *drm;

	list_for_each_entry(drm, &devices, node)
		if (drm->gpu == gpu)
			return drm;
	return NULL;
}

static void add(unsigned int minor)
{
	struct nv_gpu *gpu = nvkms_gpu_use(minor);
	struct nv_drm *drm;

	if (!gpu)
		return;
	drm = find(gpu) ? NULL : kzalloc(sizeof(*drm), GFP_KERNEL);
	if (!drm)
		goto err_unuse;
	if (fbdev)	/* a firmware framebuffer on this GPU goes, and does not come back by itself */
		aperture_remove_conflicting_pci_devices(gpu->pdev, "nvidia-drm");
	drm->dev = nv_kms_create(&gpu->pdev->dev, fbdev);
	if (IS_ERR(drm->dev)) {
		pci_err(gpu->pdev, "[nvidia-drm] Failed to register device\n");
		kfree(drm);
		goto err_unuse;
	}
	drm->gpu = gpu;
	list_add_tail(&drm->node, &devices);
	return;

err_unuse:
	nvkms_gpu_unuse(gpu);
}

static void drop(struct nv_drm *drm)
{
	list_del(&drm->node);
	nv_kms_destroy(drm->dev);
	nvkms_gpu_unuse(drm->gpu);
	kfree(drm);
}

static void gpu_bound(struct nv_gpu *gpu)
{
	if (modeset_ref)
		return;
	mutex_lock(&devices_lock);
	add(gpu->minor);
	mutex_unlock(&devices_lock);
}

static void gpu_leaves(struct nv_gpu *gpu)
{
	struct nv_drm *drm;

	if (modeset_ref)
		return;
	mutex_lock(&devices_lock);
	drm = find(gpu);
	if (drm)
		drop(drm);
	mutex_unlock(&devices_lock);
}

static const struct nv_modeset_callbacks callbacks = {
	.probe = gpu_bound,
	.remove = gpu_leaves,
};

/*
 * fbcon_pin: the common fbdev helpers take no reference on the driver for fbcon, yet people report that nvidia_drm
 * stays "in use" until the console is unbound. There is no event to follow, so this looks five times a second.
 */
static bool pinned;
static void pin_look(struct work_struct *work);
static DECLARE_DELAYED_WORK(pin_work, pin_look);

static void pin_look(struct work_struct *work)
{
	bool bound;

	console_lock();
	bound = vc_cons[0].d && vc_cons[0].d->vc_sw != &dummy_con;
	console_unlock();

	if (bound && !pinned)
		pinned = try_module_get(THIS_MODULE);
	if (!bound && pinned) {
		pinned = false;
		module_put(THIS_MODULE);
	}
	schedule_delayed_work(&pin_work, HZ / 5);
}

static int __init nv_drm_init(void)
{
	unsigned int minor;
	int rc;

	if (!modeset) {
		pr_info("[nvidia-drm] modeset=0: no DRM devices\n");
		return 0;
	}
	rc = nvkms_register(&callbacks);
	if (rc)
		return rc;
	mutex_lock(&devices_lock);
	for (minor = 0; minor < NV_MAX_GPUS; minor++)
		add(minor);
	mutex_unlock(&devices_lock);
	if (fbcon_pin)
		schedule_delayed_work(&pin_work, 0);
	return 0;
}

static void __exit nv_drm_exit(void)
{
	struct nv_drm *drm, *next;

	if (!modeset)
		return;
	cancel_delayed_work_sync(&pin_work);
	nvkms_unregister();
	mutex_lock(&devices_lock);
	list_for_each_entry_safe(drm, next, &devices, node)
		drop(drm);
	mutex_unlock(&devices_lock);
}

module_init(nv_drm_init);
module_exit(nv_drm_exit);
MODULE_LICENSE("Dual MIT/GPL");
MODULE_VERSION(NV_RELEASE);
MODULE_DESCRIPTION("stand-in for NVIDIA's nvidia-drm.ko");
