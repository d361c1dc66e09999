# Sourced by tests/run, tests/build-deb, tests/release and tests/lab/bootstrap.sh: the environment that all of them count on, and
# packages that the machine lacks. Prints nothing where all is there.

# cron and units give less than a login does: no HOME, and no sbin in PATH.
HOME=${HOME:-/root}
case :$PATH: in
*:/usr/sbin:*) ;;
*) PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin ;;
esac
export HOME PATH
# A relative one is to be ignored, says the XDG base directory specification.
case ${XDG_CACHE_HOME:-} in
/*) cache_home=$XDG_CACHE_HOME ;;
*) cache_home=$HOME/.cache ;;
esac
# apt-daily, on a machine that has just started, holds apt's locks for a few minutes.
APT_PATIENCE=300
missing=

# need COMMAND PACKAGE: the package is to be installed where there is no such command.
need() {
    command -v "$1" >/dev/null || missing="$missing $2"
}

# A compiler without the C library's headers compiles nothing, and they are two packages.
need_compiler() {
    need cc gcc
    [ -e /usr/include/stdlib.h ] || missing="$missing libc6-dev"
}

# Install what was needed and is not there.
install_missing() {
    [ -n "$missing" ] || return 0
    echo "installing$missing" >&2
    # One repository that does not answer may be none that we need: the install decides.
    apt_get update || echo "apt-get update failed: installing from what apt knows" >&2
    # shellcheck disable=SC2086 # a list of packages
    apt_get install --yes --no-install-recommends $missing
}

# apt-get, which waits for whoever holds a lock. Its own timeout is for dpkg's locks only.
apt_get() {
    patience_ends=$(($(date +%s) + APT_PATIENCE)) told=
    while :; do
        # stdout is shown at once, stderr when it is complete: it says whether it was a lock.
        {
            complaint=$(LC_ALL=C DEBIAN_FRONTEND=noninteractive apt-get -q -o "DPkg::Lock::Timeout=$APT_PATIENCE" "$@" \
                2>&1 >&3 </dev/null) && apt_status=0 || apt_status=$?
        } 3>&2
        case $apt_status:$complaint in
        0:*) break ;;
        *"Could not get lock"*) [ "$(date +%s)" -lt "$patience_ends" ] || break ;;
        *) break ;;
        esac
        [ -n "$told" ] || printf '%s\nwaiting for that lock, %s s at most\n' "$complaint" "$APT_PATIENCE" >&2
        told=yes
        sleep 5
    done
    [ -z "$complaint" ] || printf '%s\n' "$complaint" >&2
    return "$apt_status"
}

# The package and the lab's kernels are amd64's.
amd64_only() {
    arch=$(dpkg --print-architecture 2>/dev/null) || arch=$(uname -m)
    [ "$arch" = amd64 ] && return
    echo "error: this needs Debian on amd64, and this machine is $arch" >&2
    return 1
}

# Building a program of cargo's takes a minute, on a slow machine several.
TOOL_PATIENCE=1800

# tool NAME VERSION: a program of cargo's, built once for all clones of this machine; its folder is then in PATH.
tool() {
    tools=$cache_home/gpu-handoff tool_root=$cache_home/gpu-handoff/$1-$2
    if [ ! -x "$tool_root/bin/$1" ]; then
        mkdir -p "$tools"
        (
            flock --wait "$TOOL_PATIENCE" 9 || { echo "error: another run still builds $1" >&2 && exit 1; }
            # Whom we waited for has built it.
            [ ! -x "$tool_root/bin/$1" ] || exit 0
            echo "building $1 $2 (minutes, once)" >&2
            CARGO_TARGET_DIR=$tools/$1-build cargo install --quiet --locked --root "$tool_root" --version "$2" "$1" >&2
            rm -rf "$tools/$1-build"
        ) 9>"$tools/$1.lock"
    fi
    PATH=$tool_root/bin:$PATH
}
