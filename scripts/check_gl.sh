#!/bin/sh
# Make sure that pixels can be rendered without a display. usage: check_gl.sh PYTHON (one that has AIME)
# Only renderer "gl" needs this, and the tests that compare the ray caster with it.
# With root and apt the OpenGL library is installed; otherwise this stops with the command to run.
set -u
python=$1
renders() { # a library alone is not enough: libEGL without a driver loads and draws nothing
    "$python" -c 'import sys
from aime.envs.extension import load_extension

sys.exit(0 if load_extension().gl_displays() else 3)'
}
renders
case $? in
    0) exit 0 ;;
    3) ;;
    *) exit 1 ;; # the extension itself does not load; its message is above
esac
packages="libegl1 libgl1 libgl1-mesa-dri"
if command -v apt-get >/dev/null 2>&1; then
    if [ "$(id -u)" = 0 ]; then
        echo "no OpenGL that renders without a display (EGL or OSMesa): installing $packages"
        if apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages >/dev/null && renders; then
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
    echo "The renderer "gl" needs OpenGL, and neither EGL nor OSMesa can draw without a display here. Run:"
    echo "    $command"
    echo "(The ray caster needs no OpenGL: make train, aime collect --renderer raycast)"
} >&2
exit 1
