#!/bin/sh
# Episodes of tier 1: cartpole swingup, 50 episodes of 200 steps, 64x64.
# Settings from the environment: AIME_DOMAIN, AIME_TASK, AIME_SEED, AIME_NUM_EPISODES, AIME_RENDERER (raycast or gl),
# AIME_DATA_PATH (the file).
set -eu
. "$(dirname "$0")/environment.sh"
domain=${AIME_DOMAIN:-cartpole} task=${AIME_TASK:-swingup}
exec aime collect --domain "$domain" --task "$task" --seed "${AIME_SEED:-1}" --episodes "${AIME_NUM_EPISODES:-50}" \
    --steps 200 --action-repeat 2 --size 64 --policy smooth --renderer "${AIME_RENDERER:-raycast}" \
    --out "${AIME_DATA_PATH:-data/tier1_${domain}_$task.h5}" "$@"
