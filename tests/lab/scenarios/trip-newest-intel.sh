#!/bin/sh
# There and back on the newest kernel with the IOMMU intel.
# lab: --kernel newest --iommu intel
# tier: full
exec /usr/local/lib/lab-trip
