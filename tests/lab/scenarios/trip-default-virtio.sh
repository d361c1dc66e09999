#!/bin/sh
# There and back on the default kernel with the IOMMU virtio.
# lab: --kernel default --iommu virtio
# tier: full
exec /usr/local/lib/lab-trip
