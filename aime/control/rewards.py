"""Which reward a model is planned with: its own head's, or one fitted to its states, whichever foresees better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aime.control.imaginable import Head
from aime.data import EpisodeSource, splits_for
from aime.evaluation.metrics import coefficient_of_determination
from aime.evaluation.probes import fit_probe
from aime.evaluation.protocol import cut_clips, spread
from aime.world_model import DPGMMVariationalRecurrentAutoencoder

CLIP = 50  # frames
FITTED, HELD_OUT = 30, 10  # episodes at most
BURN_IN = 4  # frames of a clip, while the state settles
AT_ONCE = 8  # clips


@dataclass(frozen=True)
class RewardChoice:
    """A reward head, and how well each of the two foresees the rewards of held-out episodes.

    Attributes:
        head: the better one; None stands for the model's own.
        own_r2: of the model's head.
        fitted_r2: of a ridge regression from [h_t, z_t].
        episodes: held-out episodes behind these.
    """

    head: Head | None
    own_r2: float
    fitted_r2: float
    episodes: int

    def sentence(self) -> str:
        """For the terminal."""
        chosen = "the model's own head" if self.head is None else "a ridge regression from [h, z]"
        return (
            f"reward: {chosen} (R2 on {self.episodes} held-out episodes: own head {self.own_r2:.3f}, ridge regression "
            f"{self.fitted_r2:.3f})"
        )


def linear_head(weight: NDArray[np.float64], bias: float) -> Head:
    """A readout (F,) of features (..., F) -> (...)."""
    factors = torch.from_numpy(weight.astype(np.float32))

    def head(features: Tensor) -> Tensor:
        return features.float() @ factors.to(features.device) + bias

    return head


def choose_reward(model: DPGMMVariationalRecurrentAutoencoder, source: EpisodeSource, seed: int = 0) -> RewardChoice:
    """Fit a reward head in closed form to states of training episodes; compare it with the model's on held-out ones.

    Raises:
        ValueError: the rewards of the training episodes never vary: nothing can be learned of them.
    """
    splits = splits_for(source)
    training, held_out = (
        spread([int(episode) for episode in splits[name]], most)
        for name, most in (("train", FITTED), ("test", HELD_OUT))
    )
    features, rewards, owners, _ = reward_samples(model, source, training, seed)
    if float(rewards.std()) < 1e-8:
        raise ValueError(
            f"rewards: expected some that vary in the {len(training)} training episodes, found {rewards[0]:g} "
            "everywhere: nothing can be planned for"
        )
    ridge = fit_probe(features, rewards[:, None], owners)
    weight = ridge.weight[:, 0] / ridge.scale
    fitted = linear_head(weight, float(ridge.bias[0] - ridge.center @ weight))
    features, rewards, _, own = reward_samples(model, source, held_out, seed)

    def r2(prediction: NDArray[np.float64]) -> float:
        return float(coefficient_of_determination(prediction[:, None], rewards[:, None])[0])

    own_r2, fitted_r2 = r2(own), r2(fitted(torch.from_numpy(features).float()).double().numpy())
    return RewardChoice(fitted if fitted_r2 > own_r2 else None, own_r2, fitted_r2, len(held_out))


@torch.no_grad()
def reward_samples(
    model: DPGMMVariationalRecurrentAutoencoder, source: EpisodeSource, episodes: Sequence[int], seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    """Of frames: [h_t, z_t] (N, F), rewards of a_t (N,), episodes (N,), and what the model's head says (N,)."""
    length = min(CLIP, *(int(source.lengths[episode]) for episode in episodes))
    clips = cut_clips(source, episodes, length, starts=2)
    settled = min(BURN_IN, length - 1)
    generator = torch.Generator().manual_seed(seed)
    features, own = [], []
    for _, batch in clips.batches(AT_ONCE):
        states = model.observe(batch.observations, batch.actions, generator=generator)
        hidden, latent = states.hidden[:, settled:], states.latent[:, settled:]  # (n, L', Hd), (n, L', D)
        features.append(torch.cat([hidden, latent], -1).flatten(0, 1))
        own.append(model.reward_head(hidden).flatten())
    return (
        torch.cat(features).double().numpy(),
        clips.rewards[:, settled:].flatten().double().numpy(),
        clips.episodes.repeat_interleave(length - settled).numpy(),
        torch.cat(own).double().numpy(),
    )
