#!/bin/sh
# There and back on kernel 6.12 with the IOMMU virtio.
# lab: --kernel 6.12 --iommu virtio
# tier: full
exec /usr/local/lib/lab-trip
