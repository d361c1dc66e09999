/* SPDX-License-Identifier: GPL-2.0 */
/* The only place that knows kernel versions: 6.1, 6.12 and 7.2 are built. */
#ifndef NV_STUB_COMPAT_H
#define NV_STUB_COMPAT_H

#include <linux/device/class.h>
#include <linux/version.h>

static inline struct class *nv_class_create(const char *name)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 4, 0)
	return class_create(name);
#else
	return class_create(THIS_MODULE, name);
#endif
}

/* The framebuffer emulation on which fbcon sits; included by the DRM part only. */
#ifdef NV_STUB_WANTS_FBDEV
#include <drm/drm_device.h>
#include <drm/drm_mode_config.h>

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 13, 0)
#include <drm/clients/drm_client_setup.h>
#include <drm/drm_fbdev_shmem.h>
#define NV_FBDEV_DRIVER_OPS DRM_FBDEV_SHMEM_DRIVER_OPS,
#elif LINUX_VERSION_CODE >= KERNEL_VERSION(6, 11, 0)
#include <drm/drm_fbdev_shmem.h>
#define NV_FBDEV_DRIVER_OPS
#else
#include <drm/drm_fb_helper.h>
#define NV_FBDEV_DRIVER_OPS
#endif

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 14, 0)
#define NV_DRIVER_DATE
#else
#define NV_DRIVER_DATE .date = "20160202",
#endif

static inline void nv_fbdev_setup(struct drm_device *dev)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 13, 0)
	drm_client_setup(dev, NULL);
#elif LINUX_VERSION_CODE >= KERNEL_VERSION(6, 11, 0)
	drm_fbdev_shmem_setup(dev, 32);
#else
	drm_fbdev_generic_setup(dev, 32);
#endif
}
#endif /* NV_STUB_WANTS_FBDEV */

#endif
