"""A world model of your own in this project's protocol: two methods, the same clips and figures as everybody.

python examples/own_model.py data/cartpole_swingup.h5

On the command line, with a report: aime evaluate --model examples.own_model:make_model --data FILE --out DIR
"""

import sys
from typing import Any

import torch
from torch import Tensor

from aime.data import EpisodeSpec, open_source
from aime.evaluation.foreign import evaluate_imaginable
from aime.evaluation.protocol import EvaluationConfig
from aime.world_model.imaginable import Imagined


class Inertia:
    """Every pixel goes on as it did between the last two frames, less and less; actions are not looked at."""

    def observe(self, observations: Tensor, actions: Tensor, state: Any = None, *, generator: Any = None) -> Any:
        """The last frame and its change, (B, C, H, W) each; a single frame continues the state before it."""
        del actions, generator
        frames = observations.float()  # (B, T, C, H, W)
        before = frames[:, -2] if frames.shape[1] > 1 else (frames[:, -1] if state is None else state[0])
        return frames[:, -1], frames[:, -1] - before

    def imagine(self, state: Any, actions: Tensor, *, frames: bool = False, generator: Any = None) -> Imagined:
        """Rewards (B, N, Hz) of nothing, frames (B, N, Hz, C, H, W) in [-1, 1]."""
        del generator
        last, change = (one[:, None, None] for one in state)  # (B, 1, 1, C, H, W)
        steps = torch.ones(actions.shape[:3]).cumsum(-1)  # (B, N, Hz): 1, 2, ..
        reach = (0.5**steps).cumsum(-1)
        moved = last + reach[..., None, None, None] * change  # (B, N, Hz, C, H, W)
        images = moved.clamp(0, 255) / 127.5 - 1
        return Imagined(rewards=actions.new_zeros(actions.shape[:3]), observations=images if frames else None)


def make_model(spec: EpisodeSpec) -> Inertia:
    """What `aime evaluate --model` calls with the description of the data."""
    del spec
    return Inertia()


def main(data: str) -> None:
    """Whole-frame PSNR beside that of copying the last frame."""
    source = open_source(data)
    scores = evaluate_imaginable(make_model(source.spec), source, EvaluationConfig(samples=2)).open_loop.scores
    for name in ("model", "copy_last"):
        print(name, {ahead: found["psnr"].mean for ahead, found in scores[name].horizons.items()})


if __name__ == "__main__":
    main(sys.argv[1])
