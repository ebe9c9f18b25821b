#!/bin/sh
# Tier 2, hours: reacher easy, 20 frames of 84x84. Does it learn?
# The episodes are collected first where their file is missing; further arguments go to `aime train`, older ones
# as older_flags.sh has them.
# Settings from the environment: AIME_DOMAIN, AIME_TASK, AIME_SEED, AIME_NUM_EPISODES, AIME_DATA_PATH,
# WANDB_PROJECT; AIME_VENV and AIME_DEBUG as in environment.sh. Checkpoints are in
# runs/tier2-DOMAIN-TASK-seedSEED/checkpoints (older scripts had them in checkpoints/TASK-tier2-seedSEED).
set -eu
. "$(dirname "$0")/environment.sh"
. "$(dirname "$0")/older_flags.sh"
domain=${AIME_DOMAIN:-reacher} task=${AIME_TASK:-easy} seed=${AIME_SEED:-1}
data=${AIME_DATA_PATH:-data/tier2_${domain}_$task.h5} run=runs/tier2-$domain-$task-seed$seed
[ -f "$data" ] || AIME_DATA_PATH=$data "$(dirname "$0")/collect_tier2_data.sh"
aime train --preset tier2 --data "$data" --out "$run" --seed "$seed" "$@"
aime evaluate "$run" --data "$data" --out "$run"
echo "checkpoints  $run/checkpoints"
