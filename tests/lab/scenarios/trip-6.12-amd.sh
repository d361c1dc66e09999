#!/bin/sh
# There and back on kernel 6.12 with the IOMMU amd.
# lab: --kernel 6.12 --iommu amd
# tier: full
exec /usr/local/lib/lab-trip
