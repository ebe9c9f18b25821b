#!/bin/sh
# One command for a CUDA machine that has torch, triton, einops, h5py, numpy and pytest, and no network or MuJoCo:
# the tests that need a GPU, the kernel benchmarks, and a short tier 1 training from an episode file.
#   PYTHON=python3              the interpreter
#   AIME_DATA_PATH=FILE         episodes of `aime collect` (data/tier1_cartpole_swingup.h5); without it no training
#   AIME_STEPS=300              optimizer steps of the training
# Nothing is installed: the package is laid out by links below build/. Results go to bench/results/.
set -u
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-python3}
data=${AIME_DATA_PATH:-data/tier1_cartpole_swingup.h5}
scripts/link_tree.sh build/gpu || exit 1
PYTHONPATH="$PWD/build/gpu:$PWD"
export PYTHONPATH
status=0

"$python" - <<'PY' || exit 1
import sys

import torch

if not torch.cuda.is_available():
    sys.exit("make gpu: torch sees no CUDA device here (torch.cuda.is_available() is False)")
print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}, Python {sys.version.split()[0]}")
PY

echo "== tests that need CUDA"
# beside the kernels' tests only files with the mark are collected: others may import what this machine lacks
files=$(grep -rlE "mark\.cuda" tests --include='test_*.py' | grep -v '^tests/kernels/')
# shellcheck disable=SC2086 # a list of files
"$python" -m pytest -q -m cuda --continue-on-collection-errors tests/kernels $files || status=1

echo "== kernel benchmarks"
if [ -f bench/kernels/__main__.py ]; then
    "$python" -m bench.kernels || status=1
fi

echo "== short tier 1 training"
if [ -f "$data" ]; then
    "$python" scripts/short_training.py "$data" --steps "${AIME_STEPS:-300}" || status=1
else
    echo "no $data: make it on a machine with MuJoCo (scripts/collect_tier1_data.sh) and bring it, or name one in AIME_DATA_PATH"
    status=1
fi
exit $status
