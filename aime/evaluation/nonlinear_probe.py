"""A small nonlinear readout beside the linear probe: the ridge's own prediction plus one hidden layer.

A linear probe asks what lies open in the state, this one what is there at all: a velocity that is a product of two
entries scores nothing in the first and everything in the second. It starts as the linear readout (the last layer is
zero) and stops where held-out training episodes fit best, so that it is no worse than the linear one but by chance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aime.evaluation.probes import Ridge, fit_probe, held_out_samples

HIDDEN = 64
STEPS = 1500
LOOKS = 30
"""Times at which the held-out episodes are looked at."""
BATCH = 256
LEARNING_RATE = 1e-2
WEIGHT_DECAY = 0.1


@dataclass(frozen=True)
class Network:
    """A fitted readout: ``ridge`` plus a hidden layer on standardised features."""

    ridge: Ridge
    scale: np.ndarray
    """(P,) spread of the targets, in which the layer predicts."""
    layers: nn.Module

    @torch.no_grad()
    def predict(self, features: np.ndarray) -> np.ndarray:
        """(N, F) -> (N, P)."""
        standard = torch.from_numpy(((features - self.ridge.center) / self.ridge.scale).astype(np.float32))
        prediction: np.ndarray = self.ridge.predict(features) + self.layers(standard).double().numpy() * self.scale
        return prediction


def fit_network(features: np.ndarray, targets: np.ndarray, episodes: np.ndarray, seed: int = 0) -> Network:
    """Fit on four fifths of the episodes and stop by the last fifth; some seconds on one core, the same each time.

    Args:
        features: (N, F).
        targets: (N, P).
        episodes: (N,) which episode each sample is from.
        seed: of the first weights and the order of the samples.
    """
    held = held_out_samples(episodes)
    fitted = ~held if held.any() else np.ones(len(targets), dtype=bool)
    ridge = fit_probe(features[fitted], targets[fitted], episodes[fitted])
    scale = np.where(targets[fitted].std(0) > 1e-8, targets[fitted].std(0), 1.0)
    inputs = torch.from_numpy(((features - ridge.center) / ridge.scale).astype(np.float32))
    residual = torch.from_numpy(((targets - ridge.predict(features)) / scale).astype(np.float32))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the layers' first weights have no generator of their own
        last = nn.Linear(HIDDEN, targets.shape[1], bias=False)
        layers = nn.Sequential(nn.Linear(features.shape[1], HIDDEN), nn.SiLU(), last)
    nn.init.zeros_(last.weight)
    _descend(layers, inputs, residual, torch.from_numpy(fitted), torch.from_numpy(held), seed)
    return Network(ridge, scale, layers)


def _descend(layers: nn.Sequential, inputs: Tensor, targets: Tensor, fitted: Tensor, held: Tensor, seed: int) -> None:
    """AdamW with a cosine; the weights that did best on ``held`` remain (the last, where nothing is held)."""
    x, y = inputs[fitted], targets[fitted]
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(layers.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    best, kept = _error(layers, inputs[held], targets[held]), [p.detach().clone() for p in layers.parameters()]
    for step in range(1, STEPS + 1):
        rows = torch.randint(len(x), (BATCH,), generator=generator)
        with torch.enable_grad():  # an evaluation runs without
            loss = F.mse_loss(layers(x[rows]), y[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % (STEPS // LOOKS) == 0:
            error = _error(layers, inputs[held], targets[held])
            if not held.any() or error < best:
                best, kept = error, [p.detach().clone() for p in layers.parameters()]
    with torch.no_grad():
        for parameter, value in zip(layers.parameters(), kept, strict=True):
            parameter.copy_(value)


@torch.no_grad()
def _error(layers: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    return float(F.mse_loss(layers(inputs), targets)) if len(inputs) else float("inf")
