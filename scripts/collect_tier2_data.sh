#!/bin/sh
# Episodes of tier 2: reacher easy, 200 episodes of 500 steps, 84x84.
# Settings from the environment: AIME_DOMAIN, AIME_TASK, AIME_SEED, AIME_NUM_EPISODES, AIME_RENDERER (raycast or gl),
# AIME_DATA_PATH (the file).
set -eu
. "$(dirname "$0")/environment.sh"
domain=${AIME_DOMAIN:-reacher} task=${AIME_TASK:-easy}
exec aime collect --domain "$domain" --task "$task" --seed "${AIME_SEED:-1}" --episodes "${AIME_NUM_EPISODES:-200}" \
    --steps 500 --action-repeat 2 --size 84 --policy smooth --renderer "${AIME_RENDERER:-raycast}" \
    --out "${AIME_DATA_PATH:-data/tier2_${domain}_$task.h5}" "$@"
