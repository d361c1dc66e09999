#!/bin/sh
# There and back on kernel 7.2 with the IOMMU intel.
# lab: --kernel 7.2 --iommu intel
# tier: full
exec /usr/local/lib/lab-trip
