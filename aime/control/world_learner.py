"""One step of world model and heads on a batch of the replay, and the beliefs that imagination starts from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from aime.control.actor_critic import make_adam, step
from aime.control.agent import Agent
from aime.control.imagination import Belief
from aime.control.replay import Replay, ReplayBatch
from aime.control.state_model import StateWorldModel
from aime.control.worlds import beliefs
from aime.data import Batch
from aime.encoder_decoder import Posterior
from aime.temporal_dynamics import LSTMState
from aime.threads import threads
from aime.training import TrainConfig
from aime.training.precision import autocast_dtype
from aime.training.rehearsal import PosteriorMemory, Rehearsals
from aime.training.step_graph import Capture, StepGraph
from aime.training.stepping import CapturedSteps, Named, by_name, make_capturable, stacked
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

    With graphs, tensors other than the metrics are valid until another graph is replayed.
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

    def use_graphs(self, capture: Capture, generator: torch.Generator) -> None:
        """From now on steps are graphs, which draw from this generator of the device, as `learn` is given it."""
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


Beliefs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""What a graph returns of `Learnt`: hidden, latent, LSTM's hidden and cell of the beliefs, and ``acted``."""


def packed(start: Belief, acted: Tensor) -> Beliefs:
    """Beliefs as plain tensors."""
    return start.hidden, start.latent, start.lstm.hidden, start.lstm.cell, acted


def learnt_from(metrics: dict[str, Tensor], found: Beliefs) -> Learnt:
    """Inverse of `packed`, with metrics."""
    hidden, latent, lstm_hidden, lstm_cell, acted = found
    return Learnt(metrics, Belief(hidden, latent, LSTMState(lstm_hidden, lstm_cell)), acted)


def inputs_of(batch: ReplayBatch) -> dict[str, Tensor]:
    """What a graph reads of a batch."""
    return {name: getattr(batch, name) for name in ("observations", "actions", "rewards", "continues")}


def head_losses(agent: Agent, acted: Tensor, rewards: Tensor, continues: Tensor) -> tuple[Tensor, Tensor]:
    """() cross entropies of rewards and continues (B, T) of a batch, from [h_t, z_t] (B, T, F)."""
    reward = agent.reward.loss(agent.reward.logits(acted), rewards).mean()
    return reward, agent.continues.loss(acted, continues).mean()


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
        self.optimizer = make_adam(self.parameters, STATES_RATE)
        self.graph: StepGraph[tuple[Named, Beliefs]] | None = None

    def begin(self, replay: Replay) -> None:
        """Normalise by the first data's mean and spread."""
        rows = np.concatenate([np.asarray(episode.observations) for episode in replay.episodes.values()])
        self.world.observe_statistics(torch.from_numpy(rows))

    def learn(self, batch: ReplayBatch, index: int, generator: torch.Generator) -> Learnt:
        """See `WorldLearner.learn`."""
        del index
        self.world.train()  # cuDNN's recurrence has no gradient otherwise; nothing else in it knows the difference
        if self.graph is None:
            metrics, start, acted = self._step(
                batch.observations, batch.actions, batch.rewards, batch.continues, generator
            )
            learnt = Learnt(metrics, start, acted)
        else:
            named, found = self.graph(inputs_of(batch))
            learnt = learnt_from(by_name(named), found)
        self.world.eval()
        return learnt

    def use_graphs(self, capture: Capture, generator: torch.Generator) -> None:
        """See `WorldLearner.use_graphs`."""

        def captured(**inputs: Tensor) -> tuple[Named, Beliefs]:
            metrics, start, acted = self._step(**inputs, generator=generator)
            return stacked(metrics), packed(start, acted)

        make_capturable([self.optimizer])
        self.graph = StepGraph(captured, capture, generator.device)

    def _step(
        self, observations: Tensor, actions: Tensor, rewards: Tensor, continues: Tensor, generator: torch.Generator
    ) -> tuple[dict[str, Tensor], Belief, Tensor]:
        with threads(1):  # several would wait for each other: 512 rows of a hundred numbers
            result = self.world(observations, actions, generator)
            acted = torch.cat([result.hidden, result.latent], -1)  # (B, T, F)
            reward, going_on = head_losses(self.agent, acted, rewards, continues)
            norm = step(self.optimizer, result.loss + reward + going_on, self.parameters, GRAD_CLIP)
        start, acted = beliefs(self.world, result.latent.detach(), actions)
        metrics = {
            "model_loss": result.loss.detach(),
            "reconstruction": result.reconstruction,
            "kl": result.kl,
            "reward_loss": reward.detach(),
            "model_norm": norm,
        }
        return metrics, start, acted

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
        generator: of an agent on a GPU: where rehearsals, which there follow the step, draw from.
        preset: whose learning rate the model's is; all else is the laptop's.
    """

    def __init__(
        self,
        agent: Agent,
        seed: int,
        episodes: int,
        length: int,
        generator: torch.Generator | None = None,
        preset: str = "laptop",
    ) -> None:
        assert isinstance(agent.world, DPGMMVariationalRecurrentAutoencoder)
        self.agent, self.world = agent, agent.world
        device = agent.actor.middle.device
        self.graphs: PixelsGraphs | None = None
        rate = TrainConfig.preset(preset).learning_rate
        self.config = TrainConfig.preset("laptop", learning_rate=rate)
        config = self.config
        self.world.configure_optimizer(
            config.learning_rate, config.weight_decay, config.balancer, **config.balancer_options
        )
        self.heads: list[nn.Parameter] = [*agent.reward.parameters(), *agent.continues.parameters()]
        self.head_optimizer = make_adam(self.heads, HEADS_RATE)
        self.rows = episodes
        sizes = self.world.config
        self.memory = PosteriorMemory(
            np.arange(episodes),
            np.full(episodes, length),
            sizes.latent_dim,
            sizes.action_size,
            device,
            seed,
            config.rehearsal_age,
        )
        autocast = autocast_dtype(config, device)
        self.rehearsals = Rehearsals(self.world, self.memory, config, autocast, generator=generator)
        self.owner = torch.full((episodes,), -1)  # number of the episode that a row of the memory is of

    def begin(self, replay: Replay) -> None:
        """Whiten by the mean image and spread of the first data."""
        frames = [np.asarray(episode.observations)[::10] for episode in replay.episodes.values()]
        self.world.initialise_from_data(torch.from_numpy(np.concatenate(frames)))

    def learn(self, batch: ReplayBatch, index: int, generator: torch.Generator) -> Learnt:
        """See `WorldLearner.learn`."""
        self._set_rate(index)
        self.world.train()
        if self.graphs is None:
            with self.rehearsals.beside(index) as found:
                losses, result = self.model_step(**inputs_of(batch), generator=generator, before_update=found)
                self._remember(batch, result.perceived.posterior)
            rehearsed = self.rehearsals.take(index, found())
            latent = result.inferred.latent.detach().float()
        else:
            losses, latent, posterior = self.graphs.step(batch)
            self._remember(batch, posterior)
            rehearsed = self.rehearsals.take(index, None, self.graphs.rehearser)
        self.world.eval()
        arguments = (latent, batch.actions, batch.rewards, batch.continues)
        learnt = self.heads_step(*arguments) if self.graphs is None else self.graphs.heads(*arguments)
        metrics = {**learnt.metrics, **rehearsed}
        for name, key in (("total_loss", "model_loss"), ("recon_loss", "reconstruction"), ("kl_z", "kl")):
            if name in losses:
                metrics[key] = losses[name]
        return Learnt({**metrics, "finite": losses["finite"]}, learnt.start, learnt.acted)

    def use_graphs(self, capture: Capture, generator: torch.Generator) -> None:
        """See `WorldLearner.use_graphs`."""
        assert self.world.optimizer is not None
        players = [] if self.world.opponent is None else [self.world.opponent.optimizer]
        make_capturable([self.world.optimizer, self.head_optimizer, *players])
        self.graphs = PixelsGraphs(self, capture, generator)

    def model_step(
        self,
        observations: Tensor,
        actions: Tensor,
        rewards: Tensor,
        continues: Tensor,
        generator: torch.Generator,
        before_update: Callable[[], object] | None = None,
    ) -> tuple[dict[str, Tensor], SequencePass]:
        """The model's own step on a batch: losses, and the pass they are of."""
        kept: list[SequencePass] = []
        losses = self.world.training_step_sequence(
            observations,
            actions,
            rewards,
            continues,
            beta=self.config.beta_max,
            grad_clip=self.config.grad_clip,
            lambda_reward=REWARD_WEIGHT,
            autocast=self.rehearsals.autocast,
            generator=generator,
            before_update=before_update,
            after_pass=kept.append,
            **self.config.loss_weights(),
        )
        return losses, kept[0]

    def heads_step(self, latent: Tensor, actions: Tensor, rewards: Tensor, continues: Tensor) -> Learnt:
        """The heads' steps on latents (B, T, D) of a batch, and the beliefs there."""
        start, acted = beliefs(self.world, latent, actions)
        with threads(1):
            for _ in range(HEADS_STEPS):
                reward, going_on = head_losses(self.agent, acted, rewards, continues)
                norm = step(self.head_optimizer, reward + going_on, self.heads, GRAD_CLIP)
        return Learnt({"reward_loss": reward.detach(), "heads_norm": norm}, start, acted)

    def _set_rate(self, index: int) -> None:
        assert self.world.optimizer is not None
        factor = min(1.0, math.sqrt(FULL_RATE_STEPS / (index + 1)))
        for group in self.world.optimizer.param_groups:
            rate = self.config.learning_rate * group["rate_multiplier"] * factor
            if isinstance(group["lr"], Tensor):  # which a graph reads
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def _remember(self, batch: ReplayBatch, posterior: Posterior) -> None:
        rows = batch.episodes % self.rows
        for row, episode in zip(rows.tolist(), batch.episodes.tolist(), strict=True):
            if int(self.owner[row]) != episode:
                self.owner[row] = episode
                self.memory.stored[row] = 0
        window = Batch(
            batch.observations, batch.actions, batch.rewards, batch.continues, episodes=rows, starts=batch.starts
        )
        self.memory.store(window, posterior)

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


class PixelsGraphs:
    """The steps of a `PixelsLearner` as graphs: the model's, its rehearsals, the heads'.

    Args:
        learner: whose steps.
        capture: how they are recorded.
        generator: source of randomness, on the device.
    """

    def __init__(self, learner: PixelsLearner, capture: Capture, generator: torch.Generator) -> None:
        self.learner, self.generator = learner, generator
        device, autocast = generator.device, learner.rehearsals.autocast
        self.rehearser = CapturedSteps(learner.world, learner.config, generator, autocast, capture)
        self._steps: StepGraph[tuple[Named, Tensor, Tensor, Tensor]] = StepGraph(self._step, capture, device)
        self._heads: StepGraph[tuple[Named, Beliefs]] = StepGraph(self._heads_step, capture, device)

    def step(self, batch: ReplayBatch) -> tuple[dict[str, Tensor], Tensor, Posterior]:
        """Losses, latents (B, T, D), and their posterior, which is valid until the next replay."""
        named, latent, mean, log_scale = self._steps(inputs_of(batch))
        return by_name(named), latent.clone(), Posterior(mean, log_scale)

    def heads(self, latent: Tensor, actions: Tensor, rewards: Tensor, continues: Tensor) -> Learnt:
        """As `PixelsLearner.heads_step`."""
        inputs = {"latent": latent, "actions": actions, "rewards": rewards, "continues": continues}
        named, found = self._heads(inputs)
        return learnt_from(by_name(named), found)

    def _step(
        self, observations: Tensor, actions: Tensor, rewards: Tensor, continues: Tensor
    ) -> tuple[Named, Tensor, Tensor, Tensor]:
        losses, result = self.learner.model_step(observations, actions, rewards, continues, self.generator)
        posterior = result.perceived.posterior
        latent = result.inferred.latent.detach().float()  # (B, T, D)
        return stacked(losses), latent, posterior.mean.detach().float(), posterior.log_scale.detach().float()

    def _heads_step(self, **inputs: Tensor) -> tuple[Named, Beliefs]:
        learnt = self.learner.heads_step(**inputs)
        return stacked(learnt.metrics), packed(learnt.start, learnt.acted)
