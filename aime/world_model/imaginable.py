"""What a world model of anybody's has to offer to be planned with, and to be scored: two methods.

    state = model.observe(frames, actions)        # frames seen, and the actions that led to them
    dream = model.imagine(state, candidates)      # what N further sequences of actions would bring

The action after the last frame is what a planner decides, so `observe` is not given it: ``actions[:, t]`` is the one
that led to frame t. (The methods of this project's own model take the action after each frame; an adapter turns one
into the other.) A planner reads rewards, an evaluation reads frames, and neither looks into the state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor


@dataclass(frozen=True)
class Imagined:
    """What N sequences of Hz actions bring from each of B states; None for what the model does not say.

    Attributes:
        rewards: (B, N, Hz) of each action.
        observations: (B, N, Hz, C, H, W) the frame that each action leads to, uint8 in 0..255 or float in [-1, 1].
        continues: (B, N, Hz) probability that the episode goes on after each action; 1 everywhere when None.
        values: (B, N) return expected after the last action; 0 when None.
    """

    rewards: Tensor | None = None
    observations: Tensor | None = None
    continues: Tensor | None = None
    values: Tensor | None = None

    def returns(self, discount: float = 1.0) -> Tensor:
        """(B, N) discounted sum of the rewards, and of the value after the last action.

        Raises:
            ValueError: the model gives no rewards.
        """
        if self.rewards is None:
            raise ValueError("imagine: expected rewards (B, N, Hz), which planning needs, found None")
        rewards = self.rewards
        reached = torch.ones_like(rewards)  # (B, N, Hz): weight of the reward of action k
        if self.continues is not None:
            reached[..., 1:] = self.continues[..., :-1].cumprod(-1)
        steps = torch.arange(rewards.shape[-1], device=rewards.device, dtype=rewards.dtype)
        total = (rewards * reached * discount**steps).sum(-1)  # (B, N)
        if self.values is None:
            return total
        last = reached[..., -1] if self.continues is None else reached[..., -1] * self.continues[..., -1]
        return total + discount ** rewards.shape[-1] * last * self.values


@runtime_checkable
class Imaginable(Protocol):
    """A world model, batched over B environments. Its state is its own affair.

    Example, a model that thinks that nothing ever moves and that small actions are good:
        >>> class Still:
        ...     def observe(self, observations, actions, state=None, *, generator=None):
        ...         return observations[:, -1]
        ...     def imagine(self, state, actions, *, frames=False, generator=None):
        ...         shape = actions.shape[:3]
        ...         seen = state[:, None, None].expand(*shape, *state.shape[1:]) if frames else None
        ...         return Imagined(rewards=-actions.square().sum(-1), observations=seen)
        >>> isinstance(Still(), Imaginable)
        True
    """

    def observe(
        self,
        observations: Any,
        actions: Tensor,
        state: Any = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Any:
        """The state at the last of the frames.

        Args:
            observations: (B, T, C, H, W) uint8 frames, or what else the model was made to observe.
            actions: (B, T, A); ``actions[:, t]`` led to frame t. At an episode's start the first is of no meaning.
            state: at the frame before these; None at an episode's start.
            generator: source of randomness.
        """
        ...

    def imagine(
        self,
        state: Any,
        actions: Tensor,
        *,
        frames: bool = False,
        generator: torch.Generator | None = None,
    ) -> Imagined:
        """What would come.

        Args:
            state: of B environments, from `observe`.
            actions: (B, N, Hz, A), N sequences for each; ``actions[:, :, 0]`` is taken at the state's frame. Each of
                the N is a draw of its own where the model is random.
            frames: give ``observations``; a planner does not need them.
            generator: source of randomness.
        """
        ...


@runtime_checkable
class Featured(Protocol):
    """A model whose states can be probed."""

    def features(self, state: Any) -> Tensor:
        """(B, F) numbers in which the state at a frame is."""
        ...


def check_imagined(imagined: Any, batch: int, count: int, horizon: int, image: tuple[int, ...] | None = None) -> None:
    """Refuse results of a model that do not have the shapes of `Imagined`, before they are computed with.

    Args:
        imagined: what the model gave.
        batch: B of the actions it was given.
        count: N of these.
        horizon: Hz of these.
        image: (C, H, W) where frames were asked for.

    Raises:
        ValueError: the first entry that is wrong, with what was expected and found.
    """
    if not isinstance(imagined, Imagined):
        raise ValueError(f"imagine: expected an Imagined, found {type(imagined).__name__}")  # noqa: TRY004 - one kind
    wanted: dict[str, tuple[int, ...]] = {
        "rewards": (batch, count, horizon),
        "continues": (batch, count, horizon),
        "values": (batch, count),
    }
    if image is not None:
        wanted["observations"] = (batch, count, horizon, *image)
        if imagined.observations is None:
            raise ValueError(f"imagine: expected observations {wanted['observations']} with frames=True, found None")
    for name, shape in wanted.items():
        value = getattr(imagined, name)
        if value is None:
            continue
        found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        if found != shape:
            raise ValueError(f"imagine: expected {name} of shape {shape}, found {found}")
