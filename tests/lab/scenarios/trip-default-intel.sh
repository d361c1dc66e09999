#!/bin/sh
# There and back on the default kernel with the IOMMU intel.
# lab: --kernel default --iommu intel
# tier: full
exec /usr/local/lib/lab-trip
