#!/bin/sh
# There and back on the default kernel with the IOMMU amd.
# lab: --kernel default --iommu amd
# tier: full
exec /usr/local/lib/lab-trip
