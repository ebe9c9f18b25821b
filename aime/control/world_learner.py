"""One step of world model and heads on a batch of the replay, and the beliefs that imagination starts from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from aime.control.actor_critic import step
from aime.control.agent import Agent
from aime.control.imagination import Belief
from aime.control.replay import Replay, ReplayBatch
from aime.control.state_model import StateWorldModel
from aime.control.worlds import beliefs
from aime.data import Batch
from aime.threads import threads
from aime.training import TrainConfig
from aime.training.precision import autocast_dtype
from aime.training.rehearsal import PosteriorMemory, Rehearsals
from aime.world_model import DPGMMVariationalRecurrentAutoencoder
from aime.world_model.sequence import SequencePass

STATES_RATE = 1e-3
HEADS_RATE = 1e-3
HEADS_STEPS = 3
"""Of the heads on pixels, a step of the model: its latents move under them. With one at half the rate their R² was .84
after 1,250 steps on cartpole, where new heads on the same features reached .94."""
FULL_RATE_STEPS = 1500
"""Of the pixel model; its rate falls with the root of the steps afterwards: what reads its latents has to follow."""
REWARD_WEIGHT = 400.0
"""Of the pixel model's own reward loss: a deviation of .05 instead of 1. At 1 it is a millionth of the frames'
likelihood, and what rewards depend on, a thin pole, was recognised in familiar states alone."""
GRAD_CLIP = 100.0


@dataclass(frozen=True)
class Learnt:
    """What a step gives.

    Attributes:
        metrics: scalars.
        start: beliefs at every frame of the batch, B * T rows.
        acted: (B, T, F) [h_t, z_t], what rewards are read from.
    """

    metrics: dict[str, Tensor]
    start: Belief
    acted: Tensor


class WorldLearner(Protocol):
    """Trains an agent's world model and heads."""

    def begin(self, replay: Replay) -> None:
        """Take statistics of the first data."""
        ...

    def learn(self, batch: ReplayBatch, index: int, generator: torch.Generator) -> Learnt:
        """One step."""
        ...

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """By name, for checkpoints."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """What else a checkpoint holds."""
        ...

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Inverse of `tensors`."""
        ...


def head_losses(agent: Agent, acted: Tensor, batch: ReplayBatch) -> tuple[Tensor, Tensor]:
    """() cross entropies of rewards and continues of a batch, from [h_t, z_t] (B, T, F)."""
    reward = agent.reward.loss(agent.reward.logits(acted), batch.rewards).mean()
    return reward, agent.continues.loss(acted, batch.continues).mean()


class StatesLearner:
    """World model and heads in one step: what the rewards need shapes the latent.

    Args:
        agent: with a `StateWorldModel`.
    """

    def __init__(self, agent: Agent) -> None:
        assert isinstance(agent.world, StateWorldModel)
        self.agent, self.world = agent, agent.world
        self.parameters: list[nn.Parameter] = [
            *agent.world.parameters(),
            *agent.reward.parameters(),
            *agent.continues.parameters(),
        ]
        self.optimizer = torch.optim.Adam(self.parameters, lr=STATES_RATE, eps=1e-7)

    def begin(self, replay: Replay) -> None:
        """Normalise by the first data's mean and spread."""
        rows = np.concatenate([np.asarray(episode.observations) for episode in replay.episodes.values()])
        self.world.observe_statistics(torch.from_numpy(rows))

    def learn(self, batch: ReplayBatch, index: int, generator: torch.Generator) -> Learnt:
        """See `WorldLearner.learn`."""
        del index
        with threads(1):  # several would wait for each other: 512 rows of a hundred numbers
            result = self.world(batch.observations, batch.actions, generator)
            reward, continues = head_losses(self.agent, torch.cat([result.hidden, result.latent], -1), batch)
            norm = step(self.optimizer, result.loss + reward + continues, self.parameters, GRAD_CLIP)
        start, acted = beliefs(self.world, result.latent.detach(), batch.actions)
        metrics = {
            "model_loss": result.loss.detach(),
            "reconstruction": result.reconstruction,
            "kl": result.kl,
            "reward_loss": reward.detach(),
            "model_norm": norm,
        }
        return Learnt(metrics, start, acted)

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """By name."""
        return {"model": self.optimizer}

    def tensors(self) -> dict[str, Tensor]:
        """Nothing else."""
        return {}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Nothing to load."""


class PixelsLearner:
    """The pixel model by its own balanced step and rehearsal; the heads in a step of their own, which leaves it alone.

    Args:
        agent: with a `DPGMMVariationalRecurrentAutoencoder`.
        seed: of the rehearsals.
        episodes: E, the most that are remembered for rehearsal; later ones take the place of the oldest.
        length: steps of the longest episode.
    """

    def __init__(self, agent: Agent, seed: int, episodes: int, length: int) -> None:
        assert isinstance(agent.world, DPGMMVariationalRecurrentAutoencoder)
        self.agent, self.world = agent, agent.world
        self.config = TrainConfig.preset("laptop")
        config = self.config
        self.world.configure_optimizer(
            config.learning_rate, config.weight_decay, config.balancer, **config.balancer_options
        )
        self.heads: list[nn.Parameter] = [*agent.reward.parameters(), *agent.continues.parameters()]
        self.head_optimizer = torch.optim.Adam(self.heads, lr=HEADS_RATE, eps=1e-7)
        self.rows = episodes
        sizes = self.world.config
        self.memory = PosteriorMemory(
            np.arange(episodes),
            np.full(episodes, length),
            sizes.latent_dim,
            sizes.action_size,
            torch.device("cpu"),
            seed,
        )
        autocast = autocast_dtype(config, torch.device("cpu"))
        self.rehearsals = Rehearsals(self.world, self.memory, config, autocast)
        self.owner = torch.full((episodes,), -1)  # number of the episode that a row of the memory is of

    def begin(self, replay: Replay) -> None:
        """Whiten by the mean image and spread of the first data."""
        frames = [np.asarray(episode.observations)[::10] for episode in replay.episodes.values()]
        self.world.initialise_from_data(torch.from_numpy(np.concatenate(frames)))

    def learn(self, batch: ReplayBatch, index: int, generator: torch.Generator) -> Learnt:
        """See `WorldLearner.learn`."""
        kept: list[SequencePass] = []
        self._set_rate(index)
        self.world.train()
        with self.rehearsals.beside(index) as found:
            losses = self.world.training_step_sequence(
                batch.observations,
                batch.actions,
                batch.rewards,
                batch.continues,
                beta=self.config.beta_max,
                grad_clip=self.config.grad_clip,
                lambda_reward=REWARD_WEIGHT,
                autocast=self.rehearsals.autocast,
                generator=generator,
                before_update=found,
                after_pass=kept.append,
                **self.config.loss_weights(),
            )
            self._remember(batch, kept[0])
        rehearsed = self.rehearsals.take(index, found())
        self.world.eval()
        start, acted = beliefs(self.world, kept[0].inferred.latent.detach().float(), batch.actions)
        with threads(1):
            for _ in range(HEADS_STEPS):
                reward, continues = head_losses(self.agent, acted, batch)
                norm = step(self.head_optimizer, reward + continues, self.heads, GRAD_CLIP)
        metrics = {"reward_loss": reward.detach(), "heads_norm": norm, **rehearsed}
        for name, key in (("total_loss", "model_loss"), ("recon_loss", "reconstruction"), ("kl_z", "kl")):
            if name in losses:
                metrics[key] = losses[name]
        return Learnt({**metrics, "finite": losses["finite"]}, start, acted)

    def _set_rate(self, index: int) -> None:
        assert self.world.optimizer is not None
        factor = min(1.0, math.sqrt(FULL_RATE_STEPS / (index + 1)))
        for group in self.world.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * group["rate_multiplier"] * factor

    def _remember(self, batch: ReplayBatch, result: SequencePass) -> None:
        rows = batch.episodes % self.rows
        for row, episode in zip(rows.tolist(), batch.episodes.tolist(), strict=True):
            if int(self.owner[row]) != episode:
                self.owner[row] = episode
                self.memory.filled[row] = False
        window = Batch(
            batch.observations, batch.actions, batch.rewards, batch.continues, episodes=rows, starts=batch.starts
        )
        self.memory.store(window, result.perceived.posterior)

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """By name."""
        assert self.world.optimizer is not None
        return {"model": self.world.optimizer, "heads": self.head_optimizer}

    def tensors(self) -> dict[str, Tensor]:
        """The remembered posteriors and the balancer's state."""
        assert self.world.rgb_optimizer is not None
        balancer = {f"balancer/{name}": value for name, value in self.world.rgb_optimizer.state_dict().items()}
        return {**self.memory.tensors(), "owner": self.owner, **balancer}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Inverse of `tensors`."""
        assert self.world.rgb_optimizer is not None
        self.memory.load_tensors(tensors)
        self.owner.copy_(tensors["owner"])
        under = "balancer/"
        state = {name.removeprefix(under): value for name, value in tensors.items() if name.startswith(under)}
        self.world.rgb_optimizer.load_state_dict(state)
