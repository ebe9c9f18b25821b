"""Planning by sampling: sequences of actions are drawn, scored by a model, and the best shape the next draw.

A planner knows nothing of models: it gets a function from action sequences to returns. Actions are in [-1, 1] here; who
calls scales them. Everything is batched over B environments, whose searches do not touch each other.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Generic, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from aime.control.colored_noise import colored_noise
from aime.ranges import Range, check_ranges

Score = Callable[[Tensor], Tensor]
"""Action sequences (B, N, H, A) in [-1, 1] -> their returns (B, N)."""


@dataclass(frozen=True)
class Plan:
    """What a search found, and what the next one starts from.

    Attributes:
        action: (B, A) in [-1, 1] to take now.
        mean: (B, H, A) of the last distribution.
        elites: (B, E, H, A) the best sequences, best first.
        value: (B,) return of the best sequence found.
        iterations: rounds of drawing and scoring that were run.
        seconds: the search took, by the planner's clock.
    """

    action: Tensor
    mean: Tensor
    elites: Tensor
    value: Tensor
    iterations: int
    seconds: float


class Planner(Protocol):
    """Finds good actions under a score."""

    def plan(
        self,
        score: Score,
        batch: int,
        previous: Plan | None = None,
        *,
        proposals: Tensor | None = None,
        explore: bool = False,
        generator: torch.Generator | None = None,
    ) -> Plan:
        """Search.

        Args:
            score: returns of sequences; an entry that is not finite is never chosen.
            batch: B.
            previous: the plan of the step before, from which the search starts one step on.
            proposals: (B, P, H, A) sequences to score beside the drawn ones, such as an actor's.
            explore: draw the action where the method does, instead of its best guess.
            generator: source of randomness.

        Raises:
            ValueError: no sequence of an environment has a finite return, or a shape does not fit.
        """
        ...


@dataclass(frozen=True)
class MPPIConfig:
    """Constants of TD-MPC2 (Hansen et al. 2024) for a model with a value function; without one, a longer horizon."""

    horizon: Annotated[int, Range(1, 10_000)] = 3
    """Actions of a sequence."""
    iterations: Annotated[int, Range(1, 1000)] = 6
    """Rounds of drawing and scoring."""
    samples: Annotated[int, Range(2, 10**6)] = 512
    """Sequences of a round."""
    elites: Annotated[int, Range(1, 10**6)] = 64
    """Sequences that shape the next round."""
    temperature: Annotated[float, Range(above=0)] = 0.5
    """Factor on returns in the weights of the elites, exp(temperature (return - best))."""
    std_min: Annotated[float, Range(above=0)] = 0.05
    """Least standard deviation of an action."""
    std_max: Annotated[float, Range(above=0)] = 2.0
    """Standard deviation at the start of a search, and at most."""
    budget_ms: Annotated[float, Range(above=0)] | None = None
    """Milliseconds of a search; a round that would go beyond is not begun. The first always is. None: all rounds."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.elites > self.samples:
            raise ValueError(f"elites: expected at most the {self.samples} samples, found {self.elites}")


@dataclass(frozen=True)
class ICEMConfig:
    """Constants of iCEM (Pinneri et al. 2020), sized for tens of milliseconds a decision on two CPU cores."""

    horizon: Annotated[int, Range(1, 10_000)] = 12
    """Actions of a sequence."""
    iterations: Annotated[int, Range(1, 1000)] = 3
    """Rounds of drawing and scoring."""
    samples: Annotated[int, Range(2, 10**6)] = 128
    """Sequences of the first round; each later one has fewer by `decay`."""
    elites: Annotated[int, Range(1, 10**6)] = 10
    """Sequences that shape the next round."""
    std: Annotated[float, Range(above=0)] = 0.5
    """Standard deviation at the start of a search."""
    color: Annotated[float, Range(0, 10)] = 2.0
    """Exponent of the noise's spectrum over time: 0 is white, 2 wanders as Brownian motion does."""
    decay: Annotated[float, Range(1, 10)] = 1.25
    """Factor between the samples of successive rounds, not below twice the elites."""
    kept: Annotated[float, Range(0, 1)] = 0.3
    """Share of the elites that is scored again in the next round and, one step on, in the next search."""
    momentum: Annotated[float, Range(0, below=1)] = 0.1
    """Share of the old mean and deviation in the new ones."""
    budget_ms: Annotated[float, Range(above=0)] | None = None
    """As of MPPI."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.elites > self.samples:
            raise ValueError(f"elites: expected at most the {self.samples} samples, found {self.elites}")


Constants = TypeVar("Constants", bound=MPPIConfig | ICEMConfig)


class _Watch:
    """Keeps a search within its budget: no round is begun that, as long as the longest so far, would end too late."""

    def __init__(self, budget_ms: float | None, clock: Callable[[], float]) -> None:
        self.budget, self.clock = None if budget_ms is None else budget_ms / 1e3, clock
        self.begin = self.last = clock()
        self.longest = 0.0

    def another(self) -> bool:
        """Called after a round: whether there is time for one more."""
        now = self.clock()
        self.longest, self.last = max(self.longest, now - self.last), now
        return self.budget is None or now - self.begin + self.longest <= self.budget

    @property
    def seconds(self) -> float:
        """Since the search began."""
        return self.clock() - self.begin


class SamplingPlanner(ABC, Generic[Constants]):
    """The search that both methods share: draw sequences, score them, fit the next draw to the best.

    Args:
        action_size: A.
        config: constants.
        clock: what measures the budget, in seconds.
    """

    default: type[Constants]
    config: Constants

    def __init__(
        self, action_size: int, config: Constants | None = None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.action_size, self.config, self.clock = action_size, config or self.default(), clock

    def plan(
        self,
        score: Score,
        batch: int,
        previous: Plan | None = None,
        *,
        proposals: Tensor | None = None,
        explore: bool = False,
        generator: torch.Generator | None = None,
    ) -> Plan:
        """See `Planner.plan`."""
        watch, keep, count = _Watch(self.config.budget_ms, self.clock), self.keep, self.config.elites
        shape = (self.config.horizon, self.action_size)
        mean: Tensor = _start(previous, batch, shape)  # (B, H, A)
        std = torch.full_like(mean, self.first_std)
        beside = _checked_proposals(proposals, batch, shape)  # (B, P, H, A)
        kept = mean[:, None][:, :0] if previous is None else _shifted(previous.elites[:, :keep])  # (B, kept, H, A)
        best = mean.new_full((batch,), -torch.inf)
        done = 0
        for done in range(1, self.config.iterations + 1):
            drawn = (mean[:, None] + std[:, None] * self.noise(batch, done, generator)).clamp_(-1, 1)  # (B, N, H, A)
            candidates = torch.cat([drawn, kept, beside, *self.besides(mean, done)], 1)
            elites, values = _elites(candidates, score, count)
            kept, best = elites[:, :keep], torch.maximum(best, values[:, 0])
            mean, std = self.fit(elites, values, mean, std)
            if not watch.another():
                break
        action = self.explore(elites, values, std, generator) if explore else self.choose(elites, mean)
        return Plan(action, mean, elites, best, done, watch.seconds)

    @property
    @abstractmethod
    def first_std(self) -> float:
        """Standard deviation of the first draw."""

    @property
    def keep(self) -> int:
        """Elites that are scored again in the next round and, one step on, in the next search."""
        return 0

    @abstractmethod
    def noise(self, batch: int, done: int, generator: torch.Generator | None) -> Tensor:
        """(B, N, H, A) of unit variance, of round number ``done``."""

    def besides(self, mean: Tensor, done: int) -> list[Tensor]:  # noqa: ARG002
        """(B, P, H, A) each, to score beside what is drawn in round number ``done`` around ``mean`` (B, H, A)."""
        return []

    @abstractmethod
    def fit(self, elites: Tensor, values: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation (B, H, A) of the next draw, from the elites (B, E, H, A), their returns and the last's."""

    @abstractmethod
    def choose(self, elites: Tensor, mean: Tensor) -> Tensor:
        """(B, A) the best guess."""

    @abstractmethod
    def explore(self, elites: Tensor, values: Tensor, std: Tensor, generator: torch.Generator | None) -> Tensor:
        """(B, A) drawn."""


class MPPI(SamplingPlanner[MPPIConfig]):
    """Model predictive path integral control: elites weighted by their exponentiated returns (Williams et al. 2015).

    As in TD-MPC2: a diagonal normal over sequences, its mean that of the step before shifted by one action; the action
    is the weighted mean's, or, exploring, that of an elite drawn by weight, with the distribution's noise.
    """

    default = MPPIConfig

    @property
    def first_std(self) -> float:
        """See `SamplingPlanner`."""
        return self.config.std_max

    def noise(self, batch: int, done: int, generator: torch.Generator | None) -> Tensor:
        """White."""
        del done
        return torch.randn(batch, self.config.samples, self.config.horizon, self.action_size, generator=generator)

    def weights(self, values: Tensor) -> Tensor:
        """(B, E) of elites with these returns (B, E)."""
        return torch.softmax(self.config.temperature * values, 1)

    def fit(self, elites: Tensor, values: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted elites'."""
        del std
        weights = self.weights(values)
        mean = torch.einsum("be,beha->bha", weights, elites)
        spread = torch.einsum("be,beha->bha", weights, (elites - mean[:, None]).square()).sqrt()
        return mean, spread.clamp(self.config.std_min, self.config.std_max)

    def choose(self, elites: Tensor, mean: Tensor) -> Tensor:
        """The mean's first."""
        del elites
        return mean[:, 0]

    def explore(self, elites: Tensor, values: Tensor, std: Tensor, generator: torch.Generator | None) -> Tensor:
        """An elite's first, with noise."""
        chosen = torch.multinomial(self.weights(values), 1, generator=generator)[:, 0]  # (B,)
        action = elites[torch.arange(len(elites)), chosen, 0]  # (B, A)
        return (action + std[:, 0] * torch.randn(action.shape, generator=generator)).clamp(-1, 1)


class ICEM(SamplingPlanner[ICEMConfig]):
    """The cross-entropy method with noise correlated in time, and elites kept from round to round and step to step.

    The action is that of the best sequence found (Pinneri et al. 2020, Sample-efficient Cross-Entropy Method);
    exploring, the second best sequence takes its place in half of the decisions.
    """

    default = ICEMConfig

    @property
    def first_std(self) -> float:
        """See `SamplingPlanner`."""
        return self.config.std

    @property
    def keep(self) -> int:
        """See `SamplingPlanner`."""
        return round(self.config.kept * self.config.elites)

    def noise(self, batch: int, done: int, generator: torch.Generator | None) -> Tensor:
        """Coloured, of fewer sequences from round to round."""
        config = self.config
        count = max(round(config.samples / config.decay ** (done - 1)), min(2 * config.elites, config.samples))
        noise = colored_noise((batch, count, self.action_size), config.horizon, config.color, generator)
        return noise.transpose(-1, -2)  # (B, N, H, A)

    def besides(self, mean: Tensor, done: int) -> list[Tensor]:
        """The mean itself, in the last round."""
        return [mean[:, None]] if done == self.config.iterations else []

    def fit(self, elites: Tensor, values: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """The elites', with some momentum."""
        del values
        old, new = self.config.momentum, 1 - self.config.momentum
        return old * mean + new * elites.mean(1), old * std + new * elites.std(1, correction=0)

    def choose(self, elites: Tensor, mean: Tensor) -> Tensor:
        """The best one's first."""
        del mean
        return elites[:, 0, 0]

    def explore(self, elites: Tensor, values: Tensor, std: Tensor, generator: torch.Generator | None) -> Tensor:
        """The best one's first or the second's."""
        del values, std
        second = torch.rand(len(elites), 1, generator=generator) < 0.5
        return torch.where(second, elites[:, min(1, elites.shape[1] - 1), 0], elites[:, 0, 0])


PlannerName = Literal["mppi", "icem"]


def make_planner(
    name: PlannerName,
    action_size: int,
    *,
    horizon: int | None = None,
    samples: int | None = None,
    iterations: int | None = None,
    budget_ms: float | None = None,
) -> Planner:
    """A planner by its name, with its own constants where none is given; its elites keep their share of the samples.

    Raises:
        ValueError: an unknown name, or a constant outside its range.
    """
    given = {"horizon": horizon, "samples": samples, "iterations": iterations, "budget_ms": budget_ms}
    options = {key: value for key, value in given.items() if value is not None}
    if name not in ("mppi", "icem"):
        raise ValueError(f"planner: expected mppi or icem, found {name!r}")
    default = MPPIConfig() if name == "mppi" else ICEMConfig()
    if samples is not None:
        options["elites"] = max(1, round(default.elites * samples / default.samples))
    if name == "mppi":
        return MPPI(action_size, MPPIConfig(**options))  # type: ignore[arg-type]
    return ICEM(action_size, ICEMConfig(**options))  # type: ignore[arg-type]


def _shifted(sequences: Tensor) -> Tensor:
    """(..., H, A) one step on; the last action is held."""
    return torch.cat([sequences[..., 1:, :], sequences[..., -1:, :]], -2)


def _start(previous: Plan | None, batch: int, shape: tuple[int, int]) -> Tensor:
    """(B, H, A) mean of the first round."""
    if previous is None:
        return torch.zeros(batch, *shape)
    if tuple(previous.mean.shape) != (batch, *shape):
        raise ValueError(f"previous: expected a plan of shape {(batch, *shape)}, found {tuple(previous.mean.shape)}")
    return _shifted(previous.mean)


def _checked_proposals(proposals: Tensor | None, batch: int, shape: tuple[int, int]) -> Tensor:
    if proposals is None:
        return torch.zeros(batch, 0, *shape)
    found = tuple(proposals.shape)
    if len(found) != 4 or (found[0], *found[2:]) != (batch, *shape):
        raise ValueError(f"proposals: expected ({batch}, P, {shape[0]}, {shape[1]}), found {found}")
    return proposals.clamp(-1, 1)


def _elites(candidates: Tensor, score: Score, count: int) -> tuple[Tensor, Tensor]:
    """The best of (B, N, H, A) by score, (B, E, H, A), and their returns (B, E), best first.

    Where fewer than E have a finite return, the best stands in for the others: it cannot mislead.
    """
    values = score(candidates)  # (B, N)
    if tuple(values.shape) != tuple(candidates.shape[:2]):
        raise ValueError(f"score: expected returns {tuple(candidates.shape[:2])}, found {tuple(values.shape)}")
    values = torch.where(values.isfinite(), values, -torch.inf).float()
    top, index = values.topk(min(count, values.shape[1]), 1)  # (B, E)
    if not bool(top[:, 0].isfinite().all()):
        row = int((~top[:, 0].isfinite()).nonzero()[0, 0])
        raise ValueError(f"score: expected a finite return, found none among the sequences of environment {row}")
    finite = top.isfinite()
    index, top = torch.where(finite, index, index[:, :1]), torch.where(finite, top, top[:, :1])
    return candidates[torch.arange(len(candidates))[:, None], index], top
