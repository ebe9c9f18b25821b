#!/bin/bash
# Evaluate a trained model on the episodes that its training never saw, under SLURM or by itself:
#   sbatch scripts/evaluate_model.sh CHECKPOINT [options of aime evaluate]
# CHECKPOINT is a run, exported weights, or one step: runs/NAME/checkpoints/step_00000500. Without one, the run of
# AIME_DOMAIN, AIME_TASK, AIME_SEED and AIME_PRESET, or AIME_RUN. AIME_NUM_EPISODES (100) held-out episodes at most;
# AIME_DATA_PATH is the file; AIME_SAVE_VIDEOS=true films an imagined episode into videos/eval-NAME.
#SBATCH --job-name=aime-evaluate
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --time=02:00:00
#SBATCH --output=logs/%x-%j.out
set -eu
AIME_ROOT=${SLURM_SUBMIT_DIR:-$(cd "$(dirname "$0")/.." && pwd)} # a submitted script lies elsewhere
[ -z "${SLURM_SUBMIT_DIR:-}" ] || cd "$AIME_ROOT"
. "$AIME_ROOT/scripts/environment.sh"

domain=${AIME_DOMAIN:-walker} task=${AIME_TASK:-walk} seed=${AIME_SEED:-1} preset=${AIME_PRESET:-tier2}
case ${1:-} in
    "" | -*) checkpoint=${AIME_RUN:-runs/$domain-$task-$preset-seed$seed} ;;
    *)
        checkpoint=$1
        shift
        ;;
esac
data=${AIME_DATA_PATH:-data/${domain}_$task.h5}
if [ -n "${AIME_DATA_PATH:-}" ] || [ -f "$data" ]; then # else that of the run
    set -- --data "$data" "$@"
fi
if [ "${AIME_SAVE_VIDEOS:-false}" = true ]; then
    set -- --save_videos true --video_dir "videos/eval-$(basename "$checkpoint")" "$@"
fi
exec python -m aime.world_model.evaluate "$checkpoint" --num_episodes "${AIME_NUM_EPISODES:-100}" "$@"
