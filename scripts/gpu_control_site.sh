#!/bin/sh
# What `aime control` needs beside torch on a GPU machine without a network (scripts/gpu_control.sh), to be carried there:
# build/gpu-site/packages with MuJoCo, the Control Suite and small packages, and build/gpu-site/extensions with this
# tree's C++ extensions; for CPython 3.12 on x86-64. What no task of the suite reads is left out.
# usage: gpu_control_site.sh [PYTHON]    an interpreter of 3.12 (python3.12), which builds; PIP_OPTIONS are pip's
set -eu
cd "$(dirname "$0")/.."
python=${1:-python3.12} site=$PWD/build/gpu-site tools=$PWD/build/gpu-site-tools
found=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
[ "$found" = 3.12 ] || { echo "gpu_control_site.sh: expected an interpreter of Python 3.12, found $found" >&2; exit 1; }
export PIP_DISABLE_PIP_VERSION_CHECK=1
[ -x "$tools/bin/python" ] || "$python" -m venv "$tools"
# shellcheck disable=SC2086 # PIP_OPTIONS is a list
"$tools/bin/python" -m pip install --quiet ${PIP_OPTIONS:-} -c constraints.txt setuptools pybind11 ninja mujoco
rm -rf "$site"
mkdir -p "$site/packages" "$site/extensions"
LDFLAGS="-static-libstdc++ -static-libgcc -Wl,--strip-all ${LDFLAGS:-}" \
    "$tools/bin/python" setup.py -q build_ext --build-lib "$site/extensions" --build-temp "$tools/objects"
# shellcheck disable=SC2086
"$tools/bin/python" -m pip install --quiet ${PIP_OPTIONS:-} -c constraints.txt --no-deps --only-binary=:all: \
    --target "$site/packages" mujoco dm_control dm_env dm_tree absl-py lxml rich markdown-it-py mdurl pygments tyro \
    typing-extensions docstring-parser typeguard safetensors pillow imageio protobuf pyparsing glfw pyopengl scipy \
    labmaze requests tqdm etils fsspec
cd "$site/packages"
rm -rf dm_control/locomotion dm_control/manipulation dm_control/entities dm_control/blender dm_control/third_party \
    dm_control/viewer mujoco/experimental mujoco/include mujoco/testdata mujoco/sysid mujoco/usd mujoco/mjx \
    mujoco/_render_filament*.so scipy scipy-* scipy.libs labmaze labmaze-* bin
find . -name "*_test.py" -delete
find . -type d \( -name __pycache__ -o -name tests -o -name testing \) -prune -exec rm -rf {} +
# of scipy the suite takes `ndimage`, for quadruped escape alone, and it is larger than all else together; the stand-in has
# a directory of its own, since it must not hide a scipy that is there (torchmetrics wants it)
mkdir -p ../stand-ins/scipy
: >../stand-ins/scipy/__init__.py
echo 'def __getattr__(name): raise AttributeError("scipy is not carried: quadruped escape cannot be played")' \
    >../stand-ins/scipy/ndimage.py
cd "$site"
find extensions -type f ! -name "*.so" -delete
echo "build/gpu-site: $(du -sm . | cut -f1) MiB, $(tar -cz . | wc -c | awk '{ printf "%.1f", $1 / 1048576 }') MiB compressed"
