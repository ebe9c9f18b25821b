"""Does the model train and generate? Moving waves, four sequences of ten frames, a few steps, every generator.

`python scripts/test_training_synthetic.py` needs no data and no GPU and takes about 10 seconds; status 1 where
something is wrong.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from aime.multi_task_learning import RGB, LossAggregator
from aime.world_model import DPGMMVariationalRecurrentAutoencoder, WorldModelConfig

BATCH, FRAMES, SIDE, ACTIONS, STEPS, HORIZON = 4, 10, 64, 6, 8, 5


def moving_waves() -> tuple[Tensor, Tensor]:
    """Frames (B, T, C, H, W) in [-1, 1] of waves that move, and actions (B, T, A): the first number is their speed."""
    generator = torch.Generator().manual_seed(0)
    actions = torch.rand(BATCH, FRAMES, ACTIONS, generator=generator) * 2 - 1
    phase = actions[:, :, 0].cumsum(1) - actions[:, :, 0]  # (B, T), moved by the actions before
    x = torch.linspace(0, 4 * torch.pi, SIDE)
    lengths = torch.tensor([1.0, 0.7, 0.4])  # a channel each
    waves = torch.sin(lengths[:, None] * (x + 3 * phase[..., None, None]))  # (B, T, C, W)
    frames = waves[..., None, :] * torch.cos(x / 2)[:, None]  # (B, T, C, H, W)
    return frames, actions


@torch.no_grad()
def error_of(model: DPGMMVariationalRecurrentAutoencoder, frames: Tensor, actions: Tensor) -> float:
    """Mean squared error of the reconstructions, in evaluation mode; the model's mode stays."""
    training = model.training
    reconstructed = model.eval().forward_sequence(frames, actions)["reconstructions"]
    model.train(training)
    return float((reconstructed - frames).square().mean())


def main() -> int:
    """Train, generate, and say what came of it."""
    start = time.perf_counter()
    torch.manual_seed(0)
    frames, actions = moving_waves()
    model = DPGMMVariationalRecurrentAutoencoder(WorldModelConfig.preset("pillars", action_size=ACTIONS)).train()
    as_bytes = ((frames + 1) * 127.5).round().to(torch.uint8)
    model.initialise_from_data(as_bytes.flatten(0, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    aggregator, rgb = LossAggregator(), RGB()
    rgb.get_share_params = model.parameters
    before = error_of(model, frames, actions)
    for _ in range(STEPS):
        _, tasks = aggregator.compute_losses(model.forward_sequence(frames, actions), lambda_diversity=0.01)
        optimizer.zero_grad()
        rgb.backward(tasks)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
    after = error_of(model, frames, actions)
    model.eval()
    with torch.no_grad():
        states = model.observe(frames, actions)
        made = {
            "reconstructions": model.forward_sequence(frames, actions)["reconstructions"],
            "from the tokens": model.forward_sequence(frames, actions)["perceiver_reconstructed_img"],
            "imagine": model.imagine(states.at(-1), actions[:, :HORIZON])["observations"],
            "generate_future_sequence": model.generate_future_sequence(
                frames[:, :HORIZON], actions[:, :HORIZON], actions[:, HORIZON:]
            )["observations"],
            "sample": model.sample(BATCH),
        }
    fine = after < before
    print(f"{'ok' if fine else 'WRONG':<6}error of reconstructions {before:.4f} -> {after:.4f} in {STEPS} steps")
    for name, images in made.items():
        good = bool(torch.isfinite(images).all()) and images.shape[-3:] == frames.shape[-3:]
        fine &= good
        print(f"{'ok' if good else 'WRONG':<6}{name} {tuple(images.shape)}")
    print(f"{time.perf_counter() - start:.1f} s")
    return 0 if fine else 1


if __name__ == "__main__":
    raise SystemExit(main())
