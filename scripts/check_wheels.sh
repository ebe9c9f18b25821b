#!/bin/sh
# Install every wheel of a directory and use it, on the Python that it is for. usage: check_wheels.sh [DIRECTORY]
# DIRECTORY is dist by default. Each wheel gets a virtual environment of its own under the directory for temporary files,
# with the versions of constraints.txt and nothing of this tree, and is deleted before the next: with torch it takes
# gigabytes. Used are the C++ environments and kernels (an episode file is collected), training, and the weights it
# exports. One line for each wheel; the first that fails ends it. PIP_OPTIONS are handed to pip.
set -eu
wheels=$(cd "${1:-dist}" && pwd)
constraints=$(cd "$(dirname "$0")/.." && pwd)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK=1
unset PYTHONPATH
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
checked=0
for wheel in "$wheels"/aime-*.whl; do
    [ -e "$wheel" ] || break
    tag=${wheel##*-cp3} version=3.${tag%%-*}
    python=$(command -v "python$version") || { echo "$wheel: expected python$version on PATH, found none" >&2; exit 1; }
    rm -rf "$scratch/venv" "$scratch/use"
    mkdir "$scratch/use"
    begin=$(date +%s)
    "$python" -m venv "$scratch/venv"
    # shellcheck disable=SC2086 # PIP_OPTIONS is a list
    "$scratch/venv/bin/python" -m pip install --quiet ${PIP_OPTIONS:-} -c "$constraints" "$wheel"
    # from 3.13 on dm_control comes apart from the wheel's dependencies, see pyproject.toml
    # shellcheck disable=SC2086
    "$python" -c "import sys; sys.exit(sys.version_info >= (3, 13))" ||
        "$scratch/venv/bin/python" -m pip install --quiet ${PIP_OPTIONS:-} -c "$constraints" --no-deps dm_control
    (
        cd "$scratch/use"
        PATH=$scratch/venv/bin:$PATH
        python - "$scratch/venv" <<'CODE'
import sys
import aime
from aime.envs import _parallel_environment
from aime.kernels import _cpu
for module in (aime, _parallel_environment, _cpu):
    assert module.__file__.startswith(sys.argv[1]), f"expected {module.__name__} of the wheel, found {module.__file__}"
CODE
        aime doctor >doctor.log
        aime collect --domain cartpole --task swingup --episodes 4 --steps 40 --out episodes.h5 >collect.log
        aime train --data episodes.h5 --out run --steps 3 --device cpu --train.batch-size 4 --train.sequence-length 8 \
            >train.log
        aime imagine run --data episodes.h5 --horizon 5 --out film.gif >imagine.log
        [ -s film.gif ] && [ -s run/weights/model.safetensors ]
    ) || { cat "$scratch"/use/*.log >&2; echo "$(basename "$wheel"): failed on $("$python" --version)" >&2; exit 1; }
    checked=$((checked + 1))
    torch=$("$scratch/venv/bin/python" -c "import torch; print(torch.__version__)")
    echo "$(basename "$wheel"): used on $("$python" --version), torch $torch, $(($(date +%s) - begin)) s"
done
[ $checked -gt 0 ] || { echo "$wheels: expected wheels of aime, found none: run make wheel" >&2; exit 1; }
