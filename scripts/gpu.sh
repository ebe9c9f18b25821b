#!/bin/sh
# One command for a CUDA machine that has torch, triton, einops, h5py, numpy and pytest, and no network or MuJoCo:
# the tests that need a GPU, the kernel benchmarks, and a short tier 1 training from an episode file, with PyTorch's own
# kernels and with the fused ones. A stage that fails or takes too long is reported at the end; the next one runs.
#   PYTHON=python3              the interpreter
#   AIME_DATA_PATH=FILE         episodes of `aime collect` (data/tier1_cartpole_swingup.h5); without it no training
#   AIME_STEPS=300              optimizer steps of each training
#   AIME_STAGES="tests kernels training"   what to run
#   AIME_STAGE_SECONDS=1200     longest time of a stage
# Nothing is installed: the package is laid out by links below build/. Results go to bench/results/.
set -u
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-python3}
data=${AIME_DATA_PATH:-data/tier1_cartpole_swingup.h5}
scripts/link_tree.sh build/gpu || exit 1
PYTHONPATH="$PWD/build/gpu:$PWD"
# the working directory holds an aime/ without kernels/ in it and must not come before the laid out one
PYTHONSAFEPATH=1
export PYTHONPATH PYTHONSAFEPATH
failed=""
seconds=${AIME_STAGE_SECONDS:-1200}
stages=${AIME_STAGES:-tests kernels training}

stage() { # NAME COMMAND...
    name=$1
    shift
    case " $stages " in *" ${name%%:*} "*) ;; *) return ;; esac
    echo "== $name: $*"
    if command -v timeout > /dev/null; then set -- timeout "$seconds" "$@"; fi
    "$@"
    code=$?
    [ $code -eq 0 ] || failed="$failed $name($code)"
}

"$python" - <<'PY' || exit 1
import sys

import torch

if not torch.cuda.is_available():
    sys.exit("make gpu: torch sees no CUDA device here (torch.cuda.is_available() is False)")
print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}, Python {sys.version.split()[0]}")
PY

# Beside the kernels' tests only files with the mark are collected: others may import what this machine lacks. Warnings
# of other versions of torch and triton are no failures here.
files=$(grep -rlE "mark\.cuda" tests --include='test_*.py' | grep -v '^tests/kernels/')
# shellcheck disable=SC2086 # a list of files
stage tests "$python" -m pytest -q -m cuda -o filterwarnings=default -o pythonpath="build/gpu ." --continue-on-collection-errors --maxfail=200 \
    tests/kernels $files

device=$("$python" -c 'import re, torch; print(re.sub("[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-"))')
date=$(date -u +%Y-%m-%d)
before=$failed
stage kernels "$python" -m bench.kernels --device cuda
if [ "$failed" != "$before" ]; then
    # op by op then, so that one that does not compile costs only its own rows
    for op in vq_lookup stick_log_weights mixture_kl slot_attention mixture_logistics; do
        stage "kernels:$op" "$python" -m bench.kernels "$op" --device cuda --out "bench/results/$device-$date-$op.json"
    done
fi

if [ -f "$data" ]; then
    # float32 first: there the losses of both backends can be compared
    for precision in float32 auto; do
        stage "training:$precision" "$python" scripts/short_training.py "$data" --steps "${AIME_STEPS:-300}" \
            --precision "$precision" --backends torch triton --out "bench/results/$device-$date-training-$precision.json"
    done
else
    echo "no $data: make it on a machine with MuJoCo (scripts/collect_tier1_data.sh) and bring it, or name one in AIME_DATA_PATH"
    failed="$failed training(no data)"
fi

if [ -n "$failed" ]; then
    echo "make gpu: failed:$failed"
    exit 1
fi
echo "make gpu: all stages passed; results in bench/results/"
