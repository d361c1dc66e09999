# Sourced by run, demo and shell: install what the machine lacks, then hand
# over to the Python package in lab/. Prints nothing where all is there.
set -eu
# It decides about the modes of what goes into the guest's images.
umask 022
here=$(cd "$(dirname "$0")" && pwd)
[ "$(id -u)" = 0 ] || {
    echo "lab: error: the lab mounts and installs things: run it as root" >&2
    exit 125
}
. "$here/../tools.sh"
amd64_only || exit 125
need mmdebstrap mmdebstrap
need setpriv util-linux
need dpkg-deb dpkg
need_compiler
# For tests/build-deb: it runs in a sandbox, where nothing can be installed.
need dpkg-shlibdeps dpkg-dev
[ -x /usr/bin/python3 ] || missing="$missing python3"
[ -e /usr/share/keyrings/debian-archive-keyring.gpg ] ||
    missing="$missing debian-archive-keyring"
install_missing || exit 125
PYTHONPATH=$here PYTHONDONTWRITEBYTECODE=1
export PYTHONPATH PYTHONDONTWRITEBYTECODE
