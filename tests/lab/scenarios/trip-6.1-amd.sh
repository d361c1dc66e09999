#!/bin/sh
# There and back on kernel 6.1 with the IOMMU amd.
# lab: --kernel 6.1 --iommu amd
# tier: full
exec /usr/local/lib/lab-trip
