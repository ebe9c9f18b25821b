"""What a control run is: sizes, rates and budgets, with defaults for pixels and for states."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from aime.control.actor_critic import ActorCriticConfig
from aime.ranges import SEED, OptionError, Range, check_ranges

DEFAULTS: dict[str, dict[str, int]] = {
    "states": {
        "num_envs": 4,
        "train_ratio": 32,
        "batch_size": 8,
        "sequence_length": 64,
        "evaluate_every": 2,
        "consecutive": 1,
    },
    "pixels": {
        "num_envs": 16,
        "train_ratio": 32,
        "batch_size": 32,
        "sequence_length": 16,
        "evaluate_every": 2,
        "consecutive": 4,
    },
}
"""Values where an option is 0. Cartpole swingup from pixels had 236 with batches of 16 and 8 frames replayed for each
new one, 278 with these (docs/control.md)."""


@dataclass(frozen=True)
class ControlConfig:
    """Everything that decides how a run goes on."""

    domain: str = "cartpole"
    """Domain of the Control Suite."""
    task: str = "swingup"
    """Task of that domain."""
    observations: Literal["pixels", "states"] = "pixels"
    """What the agent sees."""
    seed: Annotated[int, SEED] = 1
    """Of everything."""
    num_envs: Annotated[int, Range(0, 4096)] = 0
    """Environments played at once; 0: 16 for pixels, 4 for states."""
    action_repeat: Annotated[int, Range(1, 1000)] = 2
    """Control steps for which an action is held. Imagination looks 15 actions ahead: twice as far with 4 as with 2."""
    preset: Literal["laptop", "tier1", "tier2"] = "laptop"
    """Sizes and learning rate of the pixels' world model, without context and slots. Others than laptop are for a GPU,
    and no run has shown yet what they reach."""
    image_size: Annotated[int, Range(32, 1024)] = 64
    """Side of the frames."""
    train_ratio: Annotated[int, Range(0, 100_000)] = 0
    """Frames trained on for each frame collected; 0: 32."""
    batch_size: Annotated[int, Range(0, 65536)] = 0
    """Windows of a batch; 0: 32 for pixels, 8 for states."""
    sequence_length: Annotated[int, Range(0, 65536)] = 0
    """Frames of a window; 0: 16 for pixels, 64 for states."""
    consecutive: Annotated[int, Range(0, 65536)] = 0
    """Batches in a row whose windows follow each other, so that rehearsals have sequences of one age; 0: 4 for pixels,
    1 for states, which rehearse nothing."""
    recent: Annotated[float, Range(-1, 1)] = -1.0
    """Share of the windows that are drawn from the episodes of the last two rounds; -1: half for pixels, none for
    states. Chosen when 8 frames were replayed for each new one, so little that new states were learnt late."""
    prefill_rounds: Annotated[int, Range(1, 1000)] = 1
    """Rounds of random actions before the first step of training."""
    model_first: Annotated[int, Range(-1, 10**9)] = -1
    """Steps of the world model before the first of actor and critic, actions being random as long; -1: 750 for pixels,
    none for states. An actor that learns from a model that knows nothing ends at a bound, where gradients are small."""
    evaluate_every: Annotated[int, Range(0, 10_000)] = 0
    """Rounds between evaluations; 0: 2."""
    replay_bytes: Annotated[int, Range(1 << 20)] = 2 << 30
    """Bound of the replay in memory; the oldest episodes are dropped beyond it."""
    time_limit: Annotated[float, Range(above=0)] | None = None
    """Seconds of an episode; the task's own by default."""
    width: Annotated[int, Range(4, 65536)] = 128
    """Hidden units of actor, critic and heads."""
    model: dict[str, Any] = field(default_factory=dict)
    """Options of the world model that differ from the default's: for pixels, the laptop preset's without context and
    slots."""
    actor_critic: ActorCriticConfig = field(default_factory=ActorCriticConfig)
    """Constants of the actor-critic."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.observations not in DEFAULTS:
            raise OptionError(f"observations: expected pixels or states, found {self.observations!r}")
        for name, value in DEFAULTS[self.observations].items():
            if getattr(self, name) == 0:
                object.__setattr__(self, name, value)
        if self.model_first < 0:
            object.__setattr__(self, "model_first", 0 if self.states else 750)
        if self.recent < 0:
            object.__setattr__(self, "recent", 0.0 if self.states else 0.5)
        if self.sequence_length < 2:
            raise OptionError(f"sequence_length: expected at least 2, found {self.sequence_length}")

    @property
    def states(self) -> bool:
        """Whether states are observed."""
        return self.observations == "states"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)
