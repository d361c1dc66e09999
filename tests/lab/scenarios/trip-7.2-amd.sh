#!/bin/sh
# There and back on kernel 7.2 with the IOMMU amd.
# lab: --kernel 7.2 --iommu amd
# tier: full
exec /usr/local/lib/lab-trip
