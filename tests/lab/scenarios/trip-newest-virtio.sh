#!/bin/sh
# There and back on the newest kernel with the IOMMU virtio.
# lab: --kernel newest --iommu virtio
# tier: full
exec /usr/local/lib/lab-trip
