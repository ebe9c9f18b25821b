"""Train a world model on an episode file, in Python.

python examples/train.py data/cartpole_swingup.h5 runs/example 2000

`aime collect` makes such a file. Options of the training, such as batch_size=8, may follow.
"""

import json
import sys

import torch

from aime.data import open_source
from aime.training import TrainConfig, train
from aime.world_model import DPGMMVariationalRecurrentAutoencoder, WorldModelConfig


def main(data: str, run: str, steps: int, *options: str) -> None:
    """So many steps with the laptop preset, into a run directory."""
    source = open_source(data)
    changes = {name: json.loads(value) for name, _, value in (option.partition("=") for option in options)}
    torch.manual_seed(1)
    channels, height, _ = source.spec.image_shape
    config = WorldModelConfig.preset(
        "laptop", action_size=source.spec.action_size, image_size=height, image_channels=channels
    )
    model = DPGMMVariationalRecurrentAutoencoder(config)
    train(model, source, TrainConfig.preset("laptop", steps=steps, **changes), run)  # checkpoints, metrics, curves
    model.save_pretrained(f"{run}/weights")  # config.json and model.safetensors
    print(f"trained {steps} steps on {data}: {run}/weights")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), *sys.argv[4:])
