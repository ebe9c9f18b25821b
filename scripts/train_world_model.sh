#!/bin/bash
# Train one world model under SLURM:
#   AIME_DOMAIN=walker AIME_TASK=walk AIME_SEED=1 sbatch scripts/train_world_model.sh [options of aime train]
# Submit from the repository, with a directory logs/ in it. The environment of `make train` is used where there is one;
# AIME_VENV or AIME_ENV_NAME names another, see environment.sh. A job that is preempted (SIGUSR1, sent two minutes before
# its end) saves, and continues when requeued. Checkpoints are in runs/DOMAIN-TASK-PRESET-seedSEED/checkpoints.
#SBATCH --job-name=aime-train
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=30G
#SBATCH --time=13:59:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --output=logs/%x-%j.out
set -eu
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"
mkdir -p logs
AIME_ROOT=$PWD
. scripts/environment.sh

domain=${AIME_DOMAIN:-walker} task=${AIME_TASK:-walk} seed=${AIME_SEED:-1} preset=${AIME_PRESET:-tier2}
data=${AIME_DATA_PATH:-data/${domain}_$task.h5} run=${AIME_RUN:-runs/$domain-$task-$preset-seed$seed}
if [ ! -f "$data" ]; then
    aime collect --domain "$domain" --task "$task" --seed "$seed" --episodes "${AIME_NUM_EPISODES:-200}" \
        --steps 500 --action-repeat 2 --size 84 --out "$data" --overwrite
fi
resume=
[ ! -d "$run/checkpoints" ] || resume=--resume
# exec: the signal reaches the training itself
exec aime train --preset "$preset" --data "$data" --out "$run" --seed "$seed" $resume "$@"
