"""Trains the toy and dies by SIGKILL in the middle of a save. Arguments: run directory, step of the fatal save, where.

Run by test_resume in a process of its own.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from aime.training import TrainConfig, train
from aime.training import checkpoint as checkpoint_module
from tests.training.toy import ToySource, make_model


def die(*_: object, **__: object) -> None:
    """As kill -9 would."""
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Arm the trap and train."""
    directory, fatal_step, where = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    original = checkpoint_module.CheckpointDirectory.save

    def save(self, step, state, *, best=False):
        if step == fatal_step:
            if where == "before rename":
                Path.rename = die
            elif where == "before index":  # tensors are on disk, the index is not
                checkpoint_module.write_json = die
            else:
                raise SystemExit(f"expected a known place, found {where}")
        return original(self, step, state, best=best)

    checkpoint_module.CheckpointDirectory.save = save
    config = TrainConfig(batch_size=4, sequence_length=6, steps=24, log_every=1, validate_every=8, checkpoint_every=4)
    train(make_model(), ToySource(), config, directory, tensorboard=False, show_progress=False)


if __name__ == "__main__":
    main()
