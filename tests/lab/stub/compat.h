/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The only place that knows how kernels differ: Debian 12's and whatever is newer are built. It asks for the thing
 * itself where the preprocessor can see it, and for the version where only the compiler could.
 */
#ifndef NV_STUB_COMPAT_H
#define NV_STUB_COMPAT_H

#include <linux/device/class.h>
#include <linux/version.h>

static inline struct class *nv_class_create(const char *name)
{
#ifdef class_create	/* up to 6.3 a macro, with a lock class inside */
	return class_create(THIS_MODULE, name);
#else
	return class_create(name);
#endif
}

/* The first argument of a class's devnode(). */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 2, 0)
typedef const struct device nv_devnode_arg;
#else
typedef struct device nv_devnode_arg;
#endif

/* The framebuffer emulation on which fbcon sits; included by the DRM part only. */
#ifdef NV_STUB_WANTS_FBDEV
#include <drm/drm_device.h>
#include <drm/drm_mode_config.h>

#if __has_include(<drm/drm_fbdev_shmem.h>)	/* from 6.11 on */
#include <drm/drm_fbdev_shmem.h>
#define NV_DRM_SHMEM
#elif __has_include(<drm/drm_fbdev_generic.h>)
#include <drm/drm_fbdev_generic.h>
#else
#include <drm/drm_fb_helper.h>
#endif

#ifdef DRM_FBDEV_SHMEM_DRIVER_OPS	/* from 6.13 on it is a client */
#include <drm/clients/drm_client_setup.h>
#define NV_FBDEV_DRIVER_OPS DRM_FBDEV_SHMEM_DRIVER_OPS,
#else
#define NV_FBDEV_DRIVER_OPS
#endif

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 14, 0)	/* a member of a structure */
#define NV_DRIVER_DATE
#else
#define NV_DRIVER_DATE .date = "20160202",
#endif

static inline void nv_fbdev_setup(struct drm_device *dev)
{
#ifdef DRM_FBDEV_SHMEM_DRIVER_OPS
	drm_client_setup(dev, NULL);
#elif defined(NV_DRM_SHMEM)
	drm_fbdev_shmem_setup(dev, 32);
#else
	drm_fbdev_generic_setup(dev, 32);
#endif
}
#endif /* NV_STUB_WANTS_FBDEV */

#endif
