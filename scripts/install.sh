#!/bin/sh
# Install AIME, editable, with the pinned versions. usage: install.sh PYTHON train|test|dev STAMP
# The stamp file holds the seconds it took.
set -eu
python=$1
begin=$(date +%s)
case $2 in
    train) what=. ;;
    *) what=".[$2]" ;;
esac
echo "installing AIME ($2) with pinned versions; minutes the first time"
export PIP_DISABLE_PIP_VERSION_CHECK=1
# What the build needs comes first and the build is not isolated: the extension is then compiled against the headers of
# the very MuJoCo that will be loaded.
# shellcheck disable=SC2086 # PIP_OPTIONS is a list
"$python" -m pip install --quiet ${PIP_OPTIONS:-} -c constraints.txt setuptools wheel pybind11 ninja mujoco
# shellcheck disable=SC2086
"$python" -m pip install --quiet ${PIP_OPTIONS:-} -c constraints.txt --no-build-isolation -e "$what"
# dm_control is not among the dependencies from 3.13 on, see pyproject.toml
# shellcheck disable=SC2086
"$python" -c "import sys; sys.exit(sys.version_info >= (3, 13))" ||
    "$python" -m pip install --quiet ${PIP_OPTIONS:-} -c constraints.txt --no-deps dm_control
echo "$(($(date +%s) - begin))" >"$3"
