#!/bin/sh
# Episodes of tier 3: humanoid walk, 1000 episodes of 1000 steps, 84x84.
# Settings from the environment: AIME_DOMAIN, AIME_TASK, AIME_SEED, AIME_NUM_EPISODES, AIME_RENDERER (raycast or gl),
# AIME_DATA_PATH (the file).
set -eu
. "$(dirname "$0")/environment.sh"
domain=${AIME_DOMAIN:-humanoid} task=${AIME_TASK:-walk}
exec aime collect --domain "$domain" --task "$task" --seed "${AIME_SEED:-1}" --episodes "${AIME_NUM_EPISODES:-1000}" \
    --steps 1000 --action-repeat 1 --size 84 --policy smooth --renderer "${AIME_RENDERER:-raycast}" \
    --out "${AIME_DATA_PATH:-data/tier3_${domain}_$task.h5}" "$@"
