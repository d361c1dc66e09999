#!/bin/sh
# There and back on kernel 6.12 with the IOMMU intel.
# lab: --kernel 6.12 --iommu intel
# tier: full
exec /usr/local/lib/lab-trip
