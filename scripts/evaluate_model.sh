#!/bin/bash
# Evaluate a trained model under SLURM, on the episodes that its training never saw:
#   AIME_DOMAIN=walker AIME_TASK=walk AIME_SEED=1 AIME_NUM_EPISODES=20 sbatch scripts/evaluate_model.sh [options]
#SBATCH --job-name=aime-evaluate
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --time=02:00:00
#SBATCH --output=logs/%x-%j.out
set -eu
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"
mkdir -p logs
venv=${AIME_VENV:-.venv}
[ ! -f "$venv/bin/activate" ] || . "$venv/bin/activate"

domain=${AIME_DOMAIN:-walker} task=${AIME_TASK:-walk} seed=${AIME_SEED:-1} preset=${AIME_PRESET:-tier2}
run=${AIME_RUN:-runs/$domain-$task-$preset-seed$seed}
exec aime evaluate "$run" --data "${AIME_DATA_PATH:-data/${domain}_$task.h5}" --out "$run" \
    --protocol.episodes "${AIME_NUM_EPISODES:-100}" "$@"
