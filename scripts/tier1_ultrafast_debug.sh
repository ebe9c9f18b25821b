#!/bin/sh
# Tier 1, minutes: cartpole swingup, 10 frames of 64x64. Does everything run?
# The episodes are collected first where their file is missing; further arguments go to `aime train`, older ones
# as older_flags.sh has them.
# Settings from the environment: AIME_DOMAIN, AIME_TASK, AIME_SEED, AIME_NUM_EPISODES, AIME_DATA_PATH,
# WANDB_PROJECT; AIME_VENV and AIME_DEBUG as in environment.sh. Checkpoints are in
# runs/tier1-DOMAIN-TASK-seedSEED/checkpoints (older scripts had them in checkpoints/TASK-tier1-seedSEED).
set -eu
. "$(dirname "$0")/environment.sh"
. "$(dirname "$0")/older_flags.sh"
domain=${AIME_DOMAIN:-cartpole} task=${AIME_TASK:-swingup} seed=${AIME_SEED:-1}
data=${AIME_DATA_PATH:-data/tier1_${domain}_$task.h5} run=runs/tier1-$domain-$task-seed$seed
[ -f "$data" ] || AIME_DATA_PATH=$data "$(dirname "$0")/collect_tier1_data.sh"
aime train --preset tier1 --data "$data" --out "$run" --seed "$seed" "$@"
aime evaluate "$run" --data "$data" --out "$run"
echo "checkpoints  $run/checkpoints"
