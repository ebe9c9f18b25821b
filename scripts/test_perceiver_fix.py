"""Does the Perceiver go on past the length that it was made for? 5 frames and 3, 10, 20 more, where it was made for 10.

`python scripts/test_perceiver_fix.py` needs no data and no GPU and takes a few seconds; status 1 where something is
wrong.
"""

from __future__ import annotations

import time

import torch

from aime.perceiver_io import CausalPerceiverIO

TRAINED, SEEN, SIDE = 10, 5, 32


def main() -> int:
    """Generate, and say what came of it."""
    start = time.perf_counter()
    torch.manual_seed(0)
    perceiver = CausalPerceiverIO(
        video_shape=(TRAINED, 3, SIDE, SIDE),
        num_latents=16,
        num_latent_channels=64,
        hidden_dim=64,
        num_encoder_layers=2,
        code_dim=32,
        num_codes=128,
        base_channels=32,
        use_3d_conv=False,
    ).eval()
    videos = torch.rand(2, SEEN, 3, SIDE, SIDE) * 2 - 1
    fine = True
    for more in (3, 10, 20):
        with torch.no_grad():
            made = perceiver.generate_autoregressive(videos, more, temperature=0.0)
        good = made.shape == (2, SEEN + more, 3, SIDE, SIDE) and bool(torch.isfinite(made).all())
        fine &= good
        print(f"{'ok' if good else 'WRONG':<6}{SEEN} + {more} frames, made for {TRAINED}: {tuple(made.shape)}")
    with torch.no_grad():
        context = perceiver.extract_context(torch.rand(2, 3 * TRAINED, 3, SIDE, SIDE))
    good = context.shape[:2] == (2, 3 * TRAINED) and bool(torch.isfinite(context).all())
    print(f"{'ok' if good else 'WRONG':<6}context of {3 * TRAINED} frames: {tuple(context.shape)}")
    print(f"{time.perf_counter() - start:.1f} s")
    return 0 if fine and good else 1


if __name__ == "__main__":
    raise SystemExit(main())
