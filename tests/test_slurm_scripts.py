"""The templates for SLURM, run by stand-ins of its commands: what they submit, and what the jobs then do."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from aime.data import open_source

ROOT = Path(__file__).parents[1]
SBATCH = """#!/bin/bash
# runs what is submitted at once, one array task after the other
echo "$*" >>submitted
[[ " $* " != *" --parsable "* ]] || echo "17;cluster"
tasks=(none)
while [[ $1 == --* ]]; do
    [[ $1 != --array=* ]] || tasks=($(seq 0 "${1#--array=0-}"))
    [[ $1 != --export=* ]] || export "${1##*,}"
    shift
done
for task in "${tasks[@]}"; do
    SLURM_JOB_ID=17 SLURM_ARRAY_TASK_ID=$task SLURM_CPUS_PER_TASK=1 bash "$@" >>"log-$task" 2>&1 || exit
done
"""


def commands(directory: Path, **texts: str) -> str:
    """A PATH with executables of these names and texts before all others."""
    directory.mkdir()
    for name, text in texts.items():
        (directory / name).write_text(text)
        (directory / name).chmod(0o755)
    return f"{directory}:{os.environ['PATH']}"


def submitted(script: str, place: Path, path: str, *options: str, **variables: str) -> None:
    """Start a template in a directory; fails where it does."""
    environment = os.environ | {"PATH": path, "SLURM_SUBMIT_DIR": str(place), "PYTHONPATH": str(ROOT), **variables}
    run = subprocess.run(
        ["bash", str(ROOT / "scripts" / script), *options],
        cwd=place, env=environment, check=False, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr


def test_an_array_of_workers_collects_one_file(tmp_path: Path) -> None:
    pytest.importorskip("dm_control")
    aime = f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m aime "$@"\n'
    path = commands(tmp_path / "bin", sbatch=SBATCH, aime=aime)
    variables = {"AIME_DOMAIN": "cartpole", "AIME_TASK": "swingup", "AIME_NUM_EPISODES": "5", "AIME_SIZE": "16"}
    options = ["--steps", "6", "--part-episodes", "2", "--num-envs", "1", "--threads", "1"]
    submitted("collect_array.sh", tmp_path, path, *options, AIME_WORKERS="2", AIME_VENV="none", **variables)
    array, joining = (tmp_path / "submitted").read_text().splitlines()
    assert "--array=0-1 " in array and "--dependency=afterok:17 " in joining
    for line in (array, joining):
        assert line.endswith(shlex.join(options))
    source = open_source(tmp_path / "data" / "cartpole_swingup.h5")
    assert source.lengths.tolist() == [6] * 5
    assert sorted(entry.name for entry in (tmp_path / "data").iterdir()) == ["cartpole_swingup.h5"]


def test_nodes_meet_at_the_first_and_a_requeued_job_resumes(tmp_path: Path) -> None:
    srun = '#!/bin/bash\nprintf "%s\\n" "$@" >command\n'
    scontrol = '#!/bin/bash\n[ "$*" = "show hostnames gpu[07-10]" ] && printf "gpu%s\\n" 07 08 09 10\n'
    path = commands(tmp_path / "bin", srun=srun, scontrol=scontrol)
    job = {"SLURM_JOB_ID": "18", "SLURM_JOB_NODELIST": "gpu[07-10]", "SLURM_JOB_NUM_NODES": "4"}
    job |= {"SLURM_GPUS_ON_NODE": "8", "AIME_VENV": "none", "AIME_RUN": "runs/mine", "AIME_DATA_PATH": "walk.h5"}
    submitted("train_distributed.sh", tmp_path, path, "--train.batch-size", "1024", **job)
    words = (tmp_path / "command").read_text().split()
    assert words[0] == "torchrun" and "--resume" not in words and words[-2:] == ["--train.batch-size", "1024"]
    for name, value in {"--nnodes": "4", "--nproc-per-node": "8", "--rdzv-endpoint": "gpu07:29500"}.items():
        assert words[words.index(name) + 1] == value
    assert words[words.index("-m") :][:3] == ["-m", "aime", "train"]
    assert words[words.index("--data") + 1] == "walk.h5" and words[words.index("--out") + 1] == "runs/mine"
    (tmp_path / "runs" / "mine" / "checkpoints").mkdir(parents=True)
    submitted("train_distributed.sh", tmp_path, path, **job)
    assert "--resume" in (tmp_path / "command").read_text().split()
