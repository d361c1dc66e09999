/* SPDX-License-Identifier: GPL-2.0 */
#ifndef NV_DRM_H
#define NV_DRM_H

struct drm_device;
struct device;

/* nv_drm_kms.c: one display of a fixed size that throws its pixels away */
struct drm_device *nv_kms_create(struct device *parent, bool fbdev);
void nv_kms_destroy(struct drm_device *dev);

#endif
