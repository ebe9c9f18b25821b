"""An agent: a world model, an actor and a critic, that acts on frames or states and is saved as one directory."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from aime.control.actor import Actor
from aime.control.critic import Critic
from aime.control.heads import ContinueHead, TwoHotHead
from aime.control.worlds import AgentState, World, absorb, feature_size, make_world, see
from aime.files import DamagedFileError, check_written, read_json, record_written, write_json
from aime.tensor_files import check_tensors, read_tensors, write_tensors


@dataclass(frozen=True)
class AgentConfig:
    """What an agent is made of, as agent.json has it."""

    observations: str
    """pixels or states."""
    world: dict[str, Any]
    """Configuration of the world model."""
    action_minimum: tuple[float, ...]
    """(A,) bounds of an action."""
    action_maximum: tuple[float, ...]
    """(A,)."""
    width: int = 192
    """Hidden units of actor, critic and heads."""
    domain: str = ""
    """What it was trained on."""
    task: str = ""
    """Likewise."""
    action_repeat: int = 2
    """Control steps for which an action is held."""

    def __post_init__(self) -> None:
        if self.observations not in ("pixels", "states"):
            raise ValueError(f"observations: expected pixels or states, found {self.observations!r}")
        for name in ("action_minimum", "action_maximum"):
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
        if len(self.action_minimum) != len(self.action_maximum) or self.action_size != self.world.get("action_size"):
            raise ValueError(
                f"action_size: expected the world model's {self.world.get('action_size')} entries in both bounds, "
                f"found {len(self.action_minimum)} and {len(self.action_maximum)}"
            )

    @property
    def action_size(self) -> int:
        """A."""
        return len(self.action_minimum)

    @property
    def image_size(self) -> int:
        """Side of the frames; 0 for states."""
        return int(self.world.get("image_size", 0))

    @property
    def observation_size(self) -> int:
        """O, entries of a state observation; 0 for pixels."""
        return int(self.world.get("observation_size", 0))


class Agent(nn.Module):
    """Acts with the actor on the world model's posterior.

    Args:
        config: what it is made of.

    Example:
        >>> world = {"observation_size": 5, "action_size": 1}
        >>> agent = Agent(AgentConfig("states", world, (-1.0,), (1.0,)))
        >>> action, state = agent.act(torch.zeros(4, 5))
        >>> action.shape
        torch.Size([4, 1])
    """

    def __init__(self, config: AgentConfig) -> None:
        super().__init__()
        self.config = config
        self.world: World = make_world(config.observations, config.world)
        features = feature_size(self.world)
        self.actor = Actor(features, config.action_minimum, config.action_maximum, config.width)
        self.critic = Critic(features, config.width)
        self.reward = TwoHotHead(features, config.width)
        self.continues = ContinueHead(features)

    @torch.no_grad()
    def act(
        self,
        observation: Tensor,
        state: AgentState | None = None,
        explore: bool = False,
        *,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, AgentState]:
        """Actions (B, A) within the bounds, and the state to be called with at the next frame.

        Args:
            observation: (B, C, H, W) uint8 frames, or (B, O) states, of B environments, on any device.
            state: what the last call returned; None at the start of an episode, whatever was before.
            explore: sample the action; otherwise it is the distribution's mean.
            generator: source of randomness, on the agent's device, where the results are too.

        Raises:
            ValueError: an observation of another shape than the agent was trained on.
            TypeError: frames that are not uint8.
        """
        seen = observation.to(self.actor.middle.device)
        belief, memory = see(self.world, seen, state, mean=not explore, generator=generator)
        policy = self.actor(belief.features)
        action = self.actor.scaled(policy.sample(generator) if explore else policy.mean)  # (B, A)
        return action, absorb(self.world, belief, action, memory)

    @torch.no_grad()
    def value(self, observation: Tensor, state: AgentState | None = None) -> Tensor:
        """Discounted return (B,) that the critic expects at the frames, before an action; arguments as of `act`."""
        seen = observation.to(self.actor.middle.device)
        belief, _ = see(self.world, seen, state, mean=True, generator=None)
        values: Tensor = self.critic(belief.features)
        return values

    def save_pretrained(self, directory: str | Path) -> None:
        """Write ``agent.json`` and ``agent.safetensors``, with their checksums."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        write_json(directory / "agent.json", dataclasses.asdict(self.config))
        write_tensors(directory / "agent.safetensors", self.state_dict())
        record_written(directory)

    @classmethod
    def from_pretrained(
        cls, directory: str | Path, device: torch.device | str = "cpu", *, action_size: int | None = None
    ) -> Self:
        """Load what `save_pretrained` wrote; nothing is unpickled.

        Args:
            directory: with agent.json.
            device: where it computes.
            action_size: entries of an action of the task it is wanted for; None: whatever it has.

        Raises:
            FileNotFoundError: a file is missing.
            aime.files.DamagedFileError: a file is cut, changed or of another kind.
            ValueError: the weights are not the configuration's, or the agent is for another action size.
        """
        directory = Path(directory)
        for name in ("agent.json", "agent.safetensors"):
            if not (directory / name).is_file():
                raise FileNotFoundError(f"{directory}: expected an agent's directory with {name}")
        check_written(directory)
        try:
            agent = cls(AgentConfig(**read_json(directory / "agent.json")))
        except (TypeError, ValueError) as error:
            named = isinstance(error, DamagedFileError)
            raise error if named else ValueError(f"{directory / 'agent.json'}: {error}") from error
        check_action_size(directory, agent.config, action_size)
        weights = read_tensors(directory / "agent.safetensors")
        check_tensors(directory / "agent.safetensors", weights, agent.state_dict())
        agent.load_state_dict(weights)
        return agent.to(device).eval()


def check_action_size(place: Path, config: AgentConfig, wanted: int | None) -> None:
    """ValueError where an agent is for actions of another size than the task's."""
    if wanted is not None and config.action_size != wanted:
        raise ValueError(f"{place}: expected an agent of {wanted} action entries, found one of {config.action_size}")


def bounds(minimum: Sequence[float], maximum: Sequence[float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Bounds of an action as plain numbers."""
    return tuple(float(x) for x in minimum), tuple(float(x) for x in maximum)
