#!/bin/sh
# The main job, end to end: collect episodes, train the laptop preset, evaluate on held-out episodes, write the report.
# `make train` runs this in its environment; by itself it needs AIME installed. Settings, from the environment:
#   AIME_DOMAIN, AIME_TASK, AIME_SEED   task and seed                   (cartpole, swingup, 1)
#   AIME_NUM_EPISODES, AIME_STEPS       episodes and steps of each      (600, 150)
#   AIME_RENDERER                       what draws the frames, or gl    (raycast)
#   AIME_TRAIN_STEPS                    training steps, of 256 frames   (2600)
#   AIME_RUN                            run directory                   (runs/DOMAIN-TASK-laptop-seedSEED)
# An episode file that is there already is used again; delete the run directory to start over.
set -eu
cd "$(dirname "$0")/.."
domain=${AIME_DOMAIN:-cartpole}
task=${AIME_TASK:-swingup}
seed=${AIME_SEED:-1}
run=${AIME_RUN:-runs/$domain-$task-laptop-seed$seed}
data=$run/data.h5

timing() { # merge a key into the run's timing.json, which every command adds its own to
    python - "$run/timing.json" "$1" "$2" <<'PY'
import json, pathlib, sys

file, key, value = pathlib.Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
values = json.loads(file.read_text()) if file.is_file() else {}
file.write_text(json.dumps(values | {key: value}, indent=2) + "\n")
PY
}

mkdir -p "$run"
if [ -f "$data" ]; then
    echo "1/3 collect: using $data"
else
    echo "1/3 collect"
    begin=$(date +%s.%N)
    aime collect --domain "$domain" --task "$task" --seed "$seed" --episodes "${AIME_NUM_EPISODES:-600}" \
        --steps "${AIME_STEPS:-150}" --action-repeat 2 --size 64 --policy smooth --renderer "${AIME_RENDERER:-raycast}" --out "$data" --overwrite
    timing collect "$(echo "$(date +%s.%N) $begin" | awk '{print $1 - $2}')"
fi
[ -z "${AIME_SETUP_SECONDS:-}" ] || timing setup "$AIME_SETUP_SECONDS"
echo "2/3 train"
aime train --preset laptop --data "$data" --out "$run" --seed "$seed" --steps "${AIME_TRAIN_STEPS:-2600}" --overwrite
echo "3/3 evaluate"
aime evaluate "$run" --data "$data" --out "$run"
