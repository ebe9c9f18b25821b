#!/bin/sh
# For a CUDA machine that has torch, triton, einops, h5py, numpy and pytest, and neither network nor MuJoCo. Stages, each
# of which ends within AIME_STAGE_SECONDS and writes its results as they come (scripts/gpu_stages.py):
#   contact      every op once on Triton, forward and backward, against the reference
#   tests        the tests marked cuda, in AIME_GPU_WORKERS processes
#   benchmarks   the kernels against their rivals; then torch.compile of some sizes in the time that is left
#   training     tier 1 from an episode file, on PyTorch's own kernels and on the fused ones, with CUDA graphs and without
#   tokens       the Perceiver by itself: arms of bench.tokens side by side, a process each
# usage: gpu.sh [STAGE...]   all of them in this order without one
#        gpu.sh run ARGUMENT...   the interpreter with these arguments, as in `gpu.sh run -m bench.kernels slot_attention`;
#                                 what it writes into bench/results/ goes to AIME_GPU_OUT and $OUT as well
#   PYTHON=python3            the interpreter
#   AIME_GPU_OUT=DIRECTORY    results go there, to $OUT where that is set, and to bench/results/
#   AIME_GPU_WORKERS=N        processes of the tests (one a processor, at most 8)
#   AIME_STAGE_SECONDS=520    longest time of a stage
#   AIME_DATA_PATH=FILE       episodes of `make gpu-data` (data/gpu_cartpole_swingup.h5)
#   AIME_TOKENS_DATA=FILE     episodes of the tokens (data/gpu_cartpole_swingup.h5, which is small); others to score on
#   AIME_TOKENS_HELD_OUT=FILE in this one, or those that the first one's splits keep apart
#   AIME_TOKENS_SECONDS="20 45"  longest training of the tokenizer and of the predictor
#   AIME_GPU_BENCH=OPTIONS    of python -m bench.kernels (--no-compile --seconds .5)
#   AIME_STEPS=300            optimizer steps of each training
#   TRITON_CACHE_DIR=DIR      compiled kernels (build/gpu/triton-cache); carried along, nothing is compiled again
# Nothing is installed: the package is laid out by links below build/.
set -u
cd "$(dirname "$0")/.." || exit 1
scripts/link_tree.sh build/gpu || exit 1
PYTHONPATH="$PWD/build/gpu:$PWD:$PWD/scripts"
# the working directory holds an aime/ without kernels/ in it and must not come before the laid out one
PYTHONSAFEPATH=1
TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$PWD/build/gpu/triton-cache}
export PYTHONPATH PYTHONSAFEPATH TRITON_CACHE_DIR
if [ "${1:-}" = run ]; then
    shift
    mkdir -p bench/results
    touch build/gpu/started
    "${PYTHON:-python3}" "$@"
    status=$?
    for place in "${AIME_GPU_OUT:-}" "${OUT:-}"; do
        [ -z "$place" ] || { mkdir -p "$place" && find bench/results -type f -newer build/gpu/started -exec cp {} "$place" \;; }
    done
    exit $status
fi
exec "${PYTHON:-python3}" scripts/gpu_stages.py "$@"
