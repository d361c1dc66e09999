#!/bin/sh
# There and back on the newest kernel with the IOMMU amd.
# lab: --kernel newest --iommu amd
# tier: full
exec /usr/local/lib/lab-trip
