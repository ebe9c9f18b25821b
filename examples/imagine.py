"""Watch a trained model imagine: truth above, one rollout below, as a picture.

python examples/imagine.py runs/example/weights data/cartpole_swingup.h5 rollout.png
"""

import sys

import torch
from PIL import Image

from aime.data import open_source
from aime.data.splits import splits_for
from aime.world_model import DPGMMVariationalRecurrentAutoencoder

SEEN, IMAGINED = 15, 45


def main(weights: str, data: str, picture: str) -> None:
    """Observe the first frames of a held-out episode, imagine the rest under its actions."""
    source = open_source(data)
    model = DPGMMVariationalRecurrentAutoencoder.from_pretrained(weights).eval()
    episode = int(splits_for(source)["test"][0])
    window = source.window(episode, 0, SEEN + IMAGINED)
    frames = torch.from_numpy(window.observations)  # (T, C, H, W) uint8
    actions = torch.from_numpy(window.actions)  # (T, A), each taken after its frame
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        states = model.observe(frames[None, :SEEN], actions[None, :SEEN])
        future = actions[None, SEEN:]  # (1, Hz, A); the last seen action is in the state: the first frame is o_SEEN
        rollout = model.imagine(states.at(-1), future, generator=generator)["observations"][0]  # (Hz, C, H, W)
    imagined = ((rollout.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    rows = [torch.cat(list(one[::5]), -1) for one in (frames[SEEN:], imagined)]  # (C, H, n W) each
    Image.fromarray(torch.cat(rows, -2).permute(1, 2, 0).numpy()).save(picture)
    print(f"episode {episode}, every fifth of {len(imagined)} frames: {picture}")


if __name__ == "__main__":
    main(*sys.argv[1:4])
