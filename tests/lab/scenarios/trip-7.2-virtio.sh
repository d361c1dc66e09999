#!/bin/sh
# There and back on kernel 7.2 with the IOMMU virtio.
# lab: --kernel 7.2 --iommu virtio
# tier: full
exec /usr/local/lib/lab-trip
