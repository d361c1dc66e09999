#!/bin/sh
# There and back on kernel 6.1 with the IOMMU virtio.
# lab: --kernel 6.1 --iommu virtio
# tier: full
exec /usr/local/lib/lab-trip
