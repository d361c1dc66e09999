#!/bin/sh
# In the toolbox, with a driver's folder on /build: compile its modules, put
# them beside the kernel's own and write the index of both.
# Arguments: the kernel's version, the compiler.
set -e
version=$1 compiler=$2
headers=/usr/src/linux-headers-$version
cd /build/source
# Debian splits the headers in two; KDIR is what the stub's makefile asks for,
# the others what those of NVIDIA's modules do. Type information of the modules
# (BTF) would need pahole, and nobody reads it.
make -j2 KDIR="$headers" SYSOUT="$headers" SYSSRC="${headers%-amd64}-common" \
    CC="$compiler" IGNORE_CC_MISMATCH=1 KERNEL_UNAME="$version" \
    CONFIG_DEBUG_INFO_BTF_MODULES=
updates=/build/root/usr/lib/modules/$version/updates
mkdir -p "$updates"
find . -name '*.ko' -exec cp {} "$updates/" \;
strip --strip-debug "$updates"/*.ko
ln -s usr/lib /build/root/lib # where depmod looks
depmod -b /build/root "$version"
rm /build/root/lib
