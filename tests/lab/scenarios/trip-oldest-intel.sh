#!/bin/sh
# There and back on the oldest kernel with the IOMMU intel.
# lab: --kernel oldest --iommu intel
# tier: full
exec /usr/local/lib/lab-trip
