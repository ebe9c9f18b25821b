#!/bin/sh
# The benchmarks of kernels and environments, each writing bench/results/<device>-<date>*.json and printing its table.
set -eu
cd "$(dirname "$0")/.."
if [ -f bench/kernels/__main__.py ]; then
    python -m aime bench kernels
fi
python -m aime bench env "$@"
