#!/bin/bash
# Train one world model on several nodes under SLURM, one torchrun a node:
#   AIME_DATA_PATH=data/humanoid_walk.h5 AIME_PRESET=tier3 sbatch --nodes 4 scripts/train_distributed.sh [options of aime train]
# --train.batch-size is that of all GPUs together. The run directory and the data have to lie on storage that all nodes
# share. A job that is preempted (SIGTERM, two minutes before its end) saves within the 30 s that torchrun gives, and
# continues when requeued, on the same number of GPUs or another.
#SBATCH --job-name=aime-train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --mem=0
#SBATCH --time=13:59:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --output=logs/%x-%j.out
set -eu
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"
mkdir -p logs
venv=${AIME_VENV:-.venv}
[ ! -f "$venv/bin/activate" ] || . "$venv/bin/activate"

domain=${AIME_DOMAIN:-humanoid} task=${AIME_TASK:-walk} seed=${AIME_SEED:-1} preset=${AIME_PRESET:-tier3}
data=${AIME_DATA_PATH:-data/${domain}_$task.h5} run=${AIME_RUN:-runs/$domain-$task-$preset-seed$seed}
resume=
[ ! -d "$run/checkpoints" ] || resume=--resume
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# SIGTERM, since torchrun hands that on to its processes and dies of SIGUSR1
exec srun torchrun --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "${SLURM_GPUS_ON_NODE:-8}" \
    --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$first:${AIME_PORT:-29500}" \
    -m aime train --preset "$preset" --data "$data" --out "$run" --seed "$seed" $resume "$@"
