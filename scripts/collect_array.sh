#!/bin/bash
# Collect episodes with an array of SLURM tasks, each a worker of `aime collect`, and join them when all are done:
#   AIME_DOMAIN=humanoid AIME_TASK=walk AIME_NUM_EPISODES=1000 scripts/collect_array.sh [options of aime collect]
# It submits itself twice: the array, and a job that starts when the array has ended well. What a lost task leaves
# unfinished is played by starting the same command again. AIME_WORKERS tasks (20), AIME_DATA_PATH the file, which has to
# lie on storage that all nodes share; AIME_VENV the virtual environment.
#SBATCH --job-name=aime-collect
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=8G
#SBATCH --time=03:59:00
#SBATCH --requeue
#SBATCH --output=logs/%x-%A-%a.out
set -eu
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"
mkdir -p logs
workers=${AIME_WORKERS:-20} domain=${AIME_DOMAIN:-humanoid} task=${AIME_TASK:-walk}
own=("$@")
set -- --domain "$domain" --task "$task" --seed "${AIME_SEED:-1}" --episodes "${AIME_NUM_EPISODES:-1000}" \
    --size "${AIME_SIZE:-84}" --renderer "${AIME_RENDERER:-raycast}" --workers "$workers" \
    --out "${AIME_DATA_PATH:-data/${domain}_$task.h5}" "$@"

if [ -z "${SLURM_JOB_ID:-}" ]; then
    array=$(sbatch --parsable --array=0-$((workers - 1)) "$0" "${own[@]}")
    sbatch --dependency="afterok:${array%%;*}" --kill-on-invalid-dep=yes --export=ALL,AIME_JOIN=1 "$0" "${own[@]}"
    exit
fi
venv=${AIME_VENV:-.venv}
[ ! -f "$venv/bin/activate" ] || . "$venv/bin/activate"
if [ -n "${AIME_JOIN:-}" ]; then
    exec aime collect "$@" --workers "${SLURM_CPUS_PER_TASK:-4}" --resume
fi
exec aime collect "$@" --worker "$SLURM_ARRAY_TASK_ID"
