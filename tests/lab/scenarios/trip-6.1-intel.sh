#!/bin/sh
# There and back on kernel 6.1 with the IOMMU intel.
# lab: --kernel 6.1 --iommu intel
# tier: full
exec /usr/local/lib/lab-trip
