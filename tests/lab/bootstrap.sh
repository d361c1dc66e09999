# Sourced by run, demo and shell: install what the machine lacks, then hand
# over to the Python package in lab/. Prints nothing where all is there.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
[ "$(id -u)" = 0 ] || {
    echo "lab: error: the lab mounts and installs things: run it as root" >&2
    exit 125
}
missing=
need() { # COMMAND PACKAGE
    command -v "$1" > /dev/null || missing="$missing $2"
}
need mmdebstrap mmdebstrap
need setpriv util-linux
need dpkg-deb dpkg
need cc gcc
[ -x /usr/bin/python3 ] || missing="$missing python3"
[ -e /usr/include/stdlib.h ] || missing="$missing libc6-dev"
[ -e /usr/share/keyrings/debian-archive-keyring.gpg ] ||
    missing="$missing debian-archive-keyring"
if [ "$missing" ]; then
    echo "lab: apt-get install$missing" >&2
    {
        apt-get -q update
        DEBIAN_FRONTEND=noninteractive apt-get -q install --yes \
            --no-install-recommends $missing
    } >&2
fi
PYTHONPATH=$here PYTHONDONTWRITEBYTECODE=1
export PYTHONPATH PYTHONDONTWRITEBYTECODE
