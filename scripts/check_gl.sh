#!/bin/sh
# Make sure that an OpenGL library for rendering without a display is there. usage: check_gl.sh PYTHON
# With root and apt it is installed; otherwise this stops with the command to run.
set -u
python=$1
loadable() {
    "$python" - <<'PY'
import ctypes, ctypes.util, sys

for name in ("libEGL.so.1", "libOSMesa.so.8", "libOSMesa.so.6", ctypes.util.find_library("EGL"), ctypes.util.find_library("OSMesa")):
    try:
        if name and ctypes.CDLL(name):
            sys.exit(0)
    except OSError:
        pass
sys.exit(1)
PY
}
loadable && exit 0
packages="libegl1 libgl1 libgl1-mesa-dri"
if command -v apt-get >/dev/null 2>&1; then
    if [ "$(id -u)" = 0 ]; then
        echo "no OpenGL library found (libEGL or libOSMesa): installing $packages"
        if apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages >/dev/null && loadable; then
            exit 0
        fi
    fi
    command="sudo apt-get install -y $packages"
elif command -v dnf >/dev/null 2>&1; then
    command="sudo dnf install -y mesa-libEGL mesa-dri-drivers"
else
    command="conda install -c conda-forge libegl mesalib"
fi
{
    echo "AIME renders its pixels with OpenGL, and neither libEGL nor libOSMesa can be loaded here. Run:"
    echo "    $command"
    echo "(Training from an existing episode file needs no OpenGL: aime train --data FILE)"
} >&2
exit 1
