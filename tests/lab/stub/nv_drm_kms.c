// SPDX-License-Identifier: GPL-2.0
/*
 * nvidia-drm.ko: a DRM device with one connected display, and the framebuffer on which fbcon sits.
 *
 * Everything is real but the picture: /dev/dri/cardN, /proc/fb ("nvidia-drmdrmfb"), the vtconsole.
 */
#include <linux/module.h>

#include <drm/drm_atomic_helper.h>
#include <drm/drm_connector.h>
#include <drm/drm_drv.h>
#include <drm/drm_edid.h>
#include <drm/drm_fourcc.h>
#include <drm/drm_gem_atomic_helper.h>
#include <drm/drm_gem_framebuffer_helper.h>
#include <drm/drm_gem_shmem_helper.h>
#include <drm/drm_managed.h>
#include <drm/drm_modeset_helper_vtables.h>
#include <drm/drm_probe_helper.h>
#include <drm/drm_simple_kms_helper.h>

#define NV_STUB_WANTS_FBDEV
#include "compat.h"
#include "nv_drm.h"

#define WIDTH	1024
#define HEIGHT	768
#define LARGEST	4096

struct nv_kms {
	struct drm_simple_display_pipe pipe;
	struct drm_connector connector;
};

DEFINE_DRM_GEM_FOPS(nv_fops);

static const struct drm_driver nv_driver = {
	.driver_features = DRIVER_MODESET | DRIVER_ATOMIC | DRIVER_GEM | DRIVER_RENDER,
	.name = "nvidia-drm",
	.desc = "NVIDIA DRM driver (stub)",
	NV_DRIVER_DATE
	.fops = &nv_fops,
	DRM_GEM_SHMEM_DRIVER_OPS,
	NV_FBDEV_DRIVER_OPS
};

static const struct drm_mode_config_funcs mode_config_funcs = {
	.fb_create = drm_gem_fb_create,
	.atomic_check = drm_atomic_helper_check,
	.atomic_commit = drm_atomic_helper_commit,
};

static int get_modes(struct drm_connector *connector)
{
	int count = drm_add_modes_noedid(connector, WIDTH, HEIGHT);

	drm_set_preferred_mode(connector, WIDTH, HEIGHT);
	return count;
}

static const struct drm_connector_helper_funcs connector_helper_funcs = {
	.get_modes = get_modes,
};

static const struct drm_connector_funcs connector_funcs = {
	.fill_modes = drm_helper_probe_single_connector_modes,
	.destroy = drm_connector_cleanup,
	.reset = drm_atomic_helper_connector_reset,
	.atomic_duplicate_state = drm_atomic_helper_connector_duplicate_state,
	.atomic_destroy_state = drm_atomic_helper_connector_destroy_state,
};

static void pipe_enable(struct drm_simple_display_pipe *pipe, struct drm_crtc_state *crtc,
			struct drm_plane_state *plane)
{
}

static void pipe_disable(struct drm_simple_display_pipe *pipe)
{
}

static void pipe_update(struct drm_simple_display_pipe *pipe, struct drm_plane_state *old)
{
}

static const struct drm_simple_display_pipe_funcs pipe_funcs = {
	.enable = pipe_enable,
	.disable = pipe_disable,
	.update = pipe_update,
	DRM_GEM_SIMPLE_DISPLAY_PIPE_SHADOW_PLANE_FUNCS
};

static const u32 formats[] = { DRM_FORMAT_XRGB8888 };

static int setup(struct drm_device *dev)
{
	struct nv_kms *kms = drmm_kzalloc(dev, sizeof(*kms), GFP_KERNEL);
	int rc;

	if (!kms)
		return -ENOMEM;
	rc = drmm_mode_config_init(dev);
	if (rc)
		return rc;
	dev->mode_config.max_width = LARGEST;
	dev->mode_config.max_height = LARGEST;
	dev->mode_config.preferred_depth = 24;
	dev->mode_config.funcs = &mode_config_funcs;

	rc = drm_connector_init(dev, &kms->connector, &connector_funcs, DRM_MODE_CONNECTOR_DisplayPort);
	if (rc)
		return rc;
	drm_connector_helper_add(&kms->connector, &connector_helper_funcs);
	rc = drm_simple_display_pipe_init(dev, &kms->pipe, &pipe_funcs, formats, ARRAY_SIZE(formats), NULL,
					  &kms->connector);
	if (rc)
		return rc;
	drm_mode_config_reset(dev);
	return drm_dev_register(dev, 0);
}

struct drm_device *nv_kms_create(struct device *parent, bool fbdev)
{
	struct drm_device *dev = drm_dev_alloc(&nv_driver, parent);
	int rc;

	if (IS_ERR(dev))
		return dev;
	rc = setup(dev);
	if (rc) {
		drm_dev_put(dev);
		return ERR_PTR(rc);
	}
	if (fbdev)
		nv_fbdev_setup(dev);
	return dev;
}

/* nv_drm_dev_destroy: the nodes vanish now; a descriptor that is still open keeps memory and module, nothing else. */
void nv_kms_destroy(struct drm_device *dev)
{
	drm_dev_unplug(dev);
	drm_atomic_helper_shutdown(dev);
	drm_dev_put(dev);
}
