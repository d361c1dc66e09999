#!/bin/sh
# There and back on the oldest kernel with the IOMMU amd.
# lab: --kernel oldest --iommu amd
# tier: full
exec /usr/local/lib/lab-trip
