#!/bin/sh
# Train an agent from pixels on a CUDA machine that has torch, triton, einops, h5py and numpy, and no network; what else
# it takes is carried there in build/gpu-site (scripts/gpu_control_site.sh makes it).
# usage: gpu_control.sh DOMAIN TASK MINUTES [OPTION...]     options are those of `aime control`
#   PYTHON=python3            the interpreter, 3.12
#   AIME_GPU_OUT=DIRECTORY    results go there, or to $OUT, or to bench/results/, every few seconds: metrics, the log,
#                             control.json, report.html, and the best agent so far as a tar file
#   AIME_GPU_GRACE=75         seconds after MINUTES for start, last round, final episodes; then it is stopped, and
#                             killed 20 seconds later
set -u
[ $# -ge 3 ] || { sed -n 4p "$0"; exit 2; }
domain=$1 task=$2 minutes=$3
shift 3
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-python3} out=${AIME_GPU_OUT:-${OUT:-$PWD/bench/results}} name=control-$domain-$task
run=$PWD/build/gpu-control/$name
[ -d build/gpu-site/packages ] || { echo "gpu_control.sh: expected build/gpu-site, found none: scripts/gpu_control_site.sh makes it" >&2; exit 1; }
mkdir -p "$out"
rm -rf "$run"
cp --remove-destination build/gpu-site/extensions/aime/envs/*.so aime/envs/ || exit 1
cp --remove-destination build/gpu-site/extensions/aime/kernels/*.so kernels/ || exit 1
scripts/link_tree.sh build/gpu || exit 1
PYTHONPATH=$PWD/build/gpu:$PWD/build/gpu-site/packages
"$python" -c 'import scipy.ndimage' 2>/dev/null || PYTHONPATH=$PYTHONPATH:$PWD/build/gpu-site/stand-ins
PYTHONSAFEPATH=1 MUJOCO_GL=disabled
TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$PWD/build/gpu/triton-cache}
export PYTHONPATH PYTHONSAFEPATH MUJOCO_GL TRITON_CACHE_DIR

copy() {
    for file in metrics.jsonl config.json control.json report.html; do
        [ -f "$run/$file" ] && cp "$run/$file" "$out/$name-$file"
    done
    if [ -f "$run/agent/agent.safetensors" ] && [ "$run/agent/agent.safetensors" -nt "$out/$name-agent.tar.gz" ]; then
        tar -C "$run" -czf "$out/$name-agent.part" agent && mv "$out/$name-agent.part" "$out/$name-agent.tar.gz"
    fi
}

seconds=$(awk "BEGIN { print int(60 * $minutes) + ${AIME_GPU_GRACE:-75} }")
timeout -k 20 "$seconds" "$python" -u -m aime control --domain "$domain" --task "$task" --minutes "$minutes" --out "$run" \
    --device cuda "$@" >"$out/$name-log.txt" 2>&1 &
child=$!
trap 'kill -TERM $child; wait $child; copy; exit 143' TERM INT
while kill -0 $child 2>/dev/null; do
    sleep 3
    copy
done
wait $child
status=$?
copy
tail -n 12 "$out/$name-log.txt"
echo "gpu_control.sh: status $status; results in $out"
exit $status
