/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the four stub modules share.
 *
 * The modules imitate what a process outside the kernel can see of NVIDIA's driver: names, module references,
 * device nodes, /proc, the log, and above all when probe and remove block or fail. Nothing is computed or drawn.
 * Unless said otherwise the model is open-gpu-kernel-modules 580, directory kernel-open.
 */
#ifndef NV_STUB_H
#define NV_STUB_H

#include <linux/kref.h>
#include <linux/list.h>
#include <linux/pci.h>

#define NV_MAX_GPUS		32
#define NV_MAJOR		195	/* NV_MAJOR_DEVICE_NUMBER, kernel-open/common/inc/nv.h */
#define NV_CTL_MINOR		255	/* NV_MINOR_DEVICE_NUMBER_CONTROL_DEVICE */
#define NV_MODESET_MINOR	254	/* NV_MINOR_DEVICE_NUMBER_MODESET_DEVICE */
#define NV_RELEASE		"580.95.05"

struct proc_dir_entry;

/* One GPU that is bound to the driver. */
struct nv_gpu {
	struct kref ref;		/* memory only: files outlive a remove() that does not wait */
	struct pci_dev *pdev;
	unsigned int minor;
	atomic_t usage;			/* usage_count of nv_linux_state_t: what remove() waits for */
	bool listed;			/* false: the driver has forgotten it, see nv_gpu_unuse() */
	struct proc_dir_entry *proc;
};

/* What nvidia-modeset hands to nvidia.ko (nvidia_modeset_callbacks_t) and nvidia-drm to nvidia-modeset. */
struct nv_modeset_callbacks {
	void (*probe)(struct nv_gpu *gpu);
	void (*remove)(struct nv_gpu *gpu);
};

/* nv_gpus.c: the table of GPUs and their usage counts */
int nv_gpu_add(struct nv_gpu *gpu);
void nv_gpu_forget(struct nv_gpu *gpu);
struct nv_gpu *nv_gpu_use(unsigned int minor);
void nv_gpu_unuse(struct nv_gpu *gpu);
void nv_gpu_put(struct nv_gpu *gpu);
int nv_set_modeset_callbacks(const struct nv_modeset_callbacks *callbacks);
void nv_modeset_probe(struct nv_gpu *gpu);
void nv_modeset_remove(struct nv_gpu *gpu);

/* nv_modeset.c, for nvidia-drm */
int nvkms_register(const struct nv_modeset_callbacks *callbacks);
void nvkms_unregister(void);
struct nv_gpu *nvkms_gpu_use(unsigned int minor);
void nvkms_gpu_unuse(struct nv_gpu *gpu);

/* nv_pci.c */
extern struct pci_driver nv_pci_driver;
extern unsigned int nv_probed, nv_initialized;

/* nv_chardev.c */
int nv_chardev_init(void);
void nv_chardev_exit(void);
void nv_node_create(struct nv_gpu *gpu);
void nv_node_destroy(struct nv_gpu *gpu);
int nv_register_modeset_fops(const struct file_operations *fops);
void nv_unregister_modeset_fops(void);
struct device *nv_make_node(dev_t devt, const char *name);
void nv_drop_node(dev_t devt);

/* nv_procfs.c */
int nv_procfs_init(void);
void nv_procfs_exit(void);
void nv_procfs_add(struct nv_gpu *gpu);
void nv_procfs_remove(struct nv_gpu *gpu);

/* nv_faults.c: module parameters that make things go wrong */
enum nv_remove_mode { NV_REMOVE_WAIT, NV_REMOVE_FOREVER, NV_REMOVE_NONE };
extern int nv_remove_mode;
extern bool nv_no_nodes;
extern bool nv_need_gpu;
extern unsigned int nv_delay_probe_ms, nv_delay_remove_ms, nv_delay_init_ms, nv_delay_exit_ms, nv_delay_mmap_ms, nv_proc_late_ms;
extern char nv_version[32];
bool nv_probe_should_fail(void);
void nv_delay(unsigned int ms);

#endif
