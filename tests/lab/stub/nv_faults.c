// SPDX-License-Identifier: GPL-2.0
/*
 * nvidia.ko: the faults, each a module parameter under /sys/module/nvidia/parameters that can change at run time.
 */
#include <linux/delay.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/string.h>

#include "nv_stub.h"

/*
 * remove_mode: what remove() does while the GPU is in use (nv-pci.c, nv_pci_remove_helper).
 *   wait     up to 590: waits, and goes on when the last user lets go
 *   forever  from 595: the GPU leaves the driver's list before the wait, so that no put reaches its count any more
 *   none     does not wait; no real driver does that. Setting it also ends a wait that is under way.
 */
int nv_remove_mode = NV_REMOVE_WAIT;
static const char * const remove_modes[] = { "wait", "forever", "none" };

static int remove_mode_set(const char *value, const struct kernel_param *kp)
{
	int mode = sysfs_match_string(remove_modes, value);

	if (mode < 0)
		return mode;
	WRITE_ONCE(nv_remove_mode, mode);
	return 0;
}

static int remove_mode_get(char *buffer, const struct kernel_param *kp)
{
	return sprintf(buffer, "%s\n", remove_modes[READ_ONCE(nv_remove_mode)]);
}

static const struct kernel_param_ops remove_mode_ops = { .set = remove_mode_set, .get = remove_mode_get };
module_param_cb(remove_mode, &remove_mode_ops, NULL, 0644);
MODULE_PARM_DESC(remove_mode, "remove() of a GPU in use: wait, forever or none");

/* nvidia_probe returns -1 for most of its failures (nv-pci.c), which user space reads as EPERM. */
static int probe_fail;
module_param(probe_fail, int, 0644);
MODULE_PARM_DESC(probe_fail, "the next N probes fail; -1: all do");

bool nv_probe_should_fail(void)
{
	if (probe_fail > 0)
		return probe_fail--;
	return probe_fail < 0;
}

unsigned int nv_delay_probe_ms;
module_param_named(delay_probe_ms, nv_delay_probe_ms, uint, 0644);
unsigned int nv_delay_remove_ms;
module_param_named(delay_remove_ms, nv_delay_remove_ms, uint, 0644);
unsigned int nv_delay_init_ms;
module_param_named(delay_init_ms, nv_delay_init_ms, uint, 0644);
unsigned int nv_delay_exit_ms;
module_param_named(delay_exit_ms, nv_delay_exit_ms, uint, 0644);
unsigned int nv_delay_mmap_ms;
module_param_named(delay_mmap_ms, nv_delay_mmap_ms, uint, 0644);
MODULE_PARM_DESC(delay_mmap_ms, "mmap() of a node sleeps for so long, with the process' memory map locked");

unsigned int nv_proc_late_ms;
module_param_named(proc_late_ms, nv_proc_late_ms, uint, 0644);
MODULE_PARM_DESC(proc_late_ms, "remove() keeps /proc/driver/nvidia/gpus/<BDF> for so long after its wait");

char nv_version[32] = NV_RELEASE;

static int version_set(const char *value, const struct kernel_param *kp)
{
	/* without the newline that echo writes */
	strscpy(nv_version, value, min(sizeof(nv_version), strcspn(value, "\n") + 1));
	return 0;
}

static int version_get(char *buffer, const struct kernel_param *kp)
{
	return sprintf(buffer, "%s\n", nv_version);
}

static const struct kernel_param_ops version_ops = { .set = version_set, .get = version_get };
module_param_cb(version, &version_ops, NULL, 0644);
MODULE_PARM_DESC(version, "release shown in /proc/driver/nvidia/version");

bool nv_no_nodes;
module_param_named(no_nodes, nv_no_nodes, bool, 0644);
MODULE_PARM_DESC(no_nodes, "make no device nodes, as the real driver; nvidia-modprobe or udev must");

/*
 * nvidia_init_module (nv.c) fails with ENODEV, "No NVIDIA devices probed.", where no GPU was bound: with every GPU on
 * vfio-pci, or overridden to it, `modprobe nvidia` does not work.
 */
bool nv_need_gpu = true;
module_param_named(need_gpu, nv_need_gpu, bool, 0644);
MODULE_PARM_DESC(need_gpu, "module load fails where no GPU was probed");

/* An uninterruptible sleep, as the driver's own os_delay(): the caller is in D state. */
void nv_delay(unsigned int ms)
{
	if (ms)
		msleep(ms);
}
