// SPDX-License-Identifier: GPL-2.0
/*
 * nvidia.ko: the table of GPUs, who uses them, and the callbacks of the modules above.
 */
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/slab.h>

#include "nv_stub.h"

static struct nv_gpu *gpus[NV_MAX_GPUS];
static DEFINE_MUTEX(gpus_lock);

static const struct nv_modeset_callbacks *modeset;
static DEFINE_MUTEX(modeset_lock);

/* The lowest free minor, as nv_linux_add_device_locked: not the order of the bus once a GPU has come back. */
int nv_gpu_add(struct nv_gpu *gpu)
{
	unsigned int minor;

	mutex_lock(&gpus_lock);
	for (minor = 0; minor < NV_MAX_GPUS && gpus[minor]; minor++)
		;
	if (minor < NV_MAX_GPUS) {
		gpu->minor = minor;
		gpu->listed = true;
		gpus[minor] = gpu;
	}
	mutex_unlock(&gpus_lock);
	return minor < NV_MAX_GPUS ? 0 : -ENOSPC;
}

/* nv_linux_remove_device_locked */
void nv_gpu_forget(struct nv_gpu *gpu)
{
	mutex_lock(&gpus_lock);
	if (gpu->listed) {
		gpu->listed = false;
		gpus[gpu->minor] = NULL;
	}
	mutex_unlock(&gpus_lock);
}

static void nv_gpu_free(struct kref *ref)
{
	kfree(container_of(ref, struct nv_gpu, ref));
}

void nv_gpu_put(struct nv_gpu *gpu)
{
	kref_put(&gpu->ref, nv_gpu_free);
}

/**
 * nv_gpu_use - raise the usage count of the GPU with this minor (nvidia_dev_get and nvidia_open)
 *
 * A GPU whose remove() is waiting can still be opened in the mode `wait`. 590 refuses that; whether 580 does is not
 * settled, so the stub takes the harder case.
 *
 * Return: the GPU, or NULL where there is none.
 */
struct nv_gpu *nv_gpu_use(unsigned int minor)
{
	struct nv_gpu *gpu = NULL;

	mutex_lock(&gpus_lock);
	if (minor < NV_MAX_GPUS && gpus[minor]) {
		gpu = gpus[minor];
		kref_get(&gpu->ref);
		atomic_inc(&gpu->usage);
	}
	mutex_unlock(&gpus_lock);
	return gpu;
}
EXPORT_SYMBOL(nv_gpu_use);

/**
 * nv_gpu_unuse - let go of what nv_gpu_use() gave
 *
 * From 595 on the put looks the GPU up in the list, which it has left before the wait, and returns early: the count
 * never falls (nvidia_dev_put, nvidia_dev_put_uuid).
 */
void nv_gpu_unuse(struct nv_gpu *gpu)
{
	mutex_lock(&gpus_lock);
	if (gpu->listed)
		atomic_dec(&gpu->usage);
	mutex_unlock(&gpus_lock);
	nv_gpu_put(gpu);
}
EXPORT_SYMBOL(nv_gpu_unuse);

/* nvidia_set_callbacks (nv-modeset-interface.c); waits for a callback that is running. */
int nv_set_modeset_callbacks(const struct nv_modeset_callbacks *callbacks)
{
	int rc = 0;

	mutex_lock(&modeset_lock);
	if (!modeset == !callbacks)
		rc = -EINVAL;
	else
		modeset = callbacks;
	mutex_unlock(&modeset_lock);
	return rc;
}
EXPORT_SYMBOL(nv_set_modeset_callbacks);

void nv_modeset_probe(struct nv_gpu *gpu)
{
	mutex_lock(&modeset_lock);
	if (modeset)
		modeset->probe(gpu);
	mutex_unlock(&modeset_lock);
}

void nv_modeset_remove(struct nv_gpu *gpu)
{
	mutex_lock(&modeset_lock);
	if (modeset)
		modeset->remove(gpu);
	mutex_unlock(&modeset_lock);
}
