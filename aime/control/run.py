"""What a control run holds, and how it begins."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from aime.control.actor_critic import ActorCritic
from aime.control.agent import Agent, AgentConfig, bounds
from aime.control.collecting import observation_size
from aime.control.config import ControlConfig
from aime.control.graphs import Graphs, make_graphs
from aime.control.progress import Progress
from aime.control.replay import Replay, state_spec
from aime.control.state_model import StateModelConfig
from aime.control.world_learner import PixelsLearner, StatesLearner, WorldLearner
from aime.data.spec import EpisodeSpec
from aime.envs import ParallelEnvironment
from aime.training.config import CudaGraph
from aime.world_model import WorldModelConfig

LEAN = {"context_in_posterior": False, "attention_in_posterior": False}  # a better forecast in less time: ablations.md
REMEMBERED = 512  # episodes whose posteriors are kept for rehearsal


@dataclass
class Run:
    """What the loop holds."""

    config: ControlConfig
    environment: ParallelEnvironment
    agent: Agent
    learner: WorldLearner
    actor_critic: ActorCritic
    replay: Replay
    directory: Path | None
    progress: Progress = field(default_factory=Progress)
    stopped_by: str | None = None
    """Name of the signal that stopped it."""
    source: torch.Generator | None = None
    """Source of randomness on the agent's device, where that is not the CPU."""
    graphs: Graphs | None = None
    """What is replayed on a GPU."""

    @property
    def device(self) -> torch.device:
        """Where the agent is."""
        return self.agent.actor.middle.device

    def close(self) -> None:
        """End the environments."""
        self.environment.close()


def make_environment(config: ControlConfig) -> ParallelEnvironment:
    """The environments of a run; ValueError for an unknown domain or task, with near names."""
    return ParallelEnvironment(
        config.domain,
        config.task,
        num_envs=config.num_envs,
        num_threads=min(torch.get_num_threads(), config.num_envs),
        action_repeat=config.action_repeat,
        seed=config.seed,
        pixels=None if config.states else (config.image_size, config.image_size),
        renderer="raycast",
        time_limit=config.time_limit,
    )


def begin(
    config: ControlConfig,
    directory: Path | None = None,
    device: torch.device | None = None,
    cuda_graph: CudaGraph = "auto",
) -> Run:
    """A run at its start: environments, a new agent, and the replay that is in the directory, if any.

    Args:
        config: what is trained.
        directory: of the replay; None keeps it in memory alone.
        device: where the agent acts and learns; None: the CPU.
        cuda_graph: whether its steps are replayed as CUDA graphs: auto, wherever the device is one of CUDA.

    Raises:
        ValueError: an unknown domain or task.
        OptionError: graphs are asked for and cannot be.
    """
    environment = make_environment(config)
    torch.manual_seed(config.seed)
    minimum, maximum = bounds(environment.action_minimum.tolist(), environment.action_maximum.tolist())
    facts: dict[str, Any] = {"action_minimum": minimum, "action_maximum": maximum}
    facts |= {"domain": config.domain, "task": config.task, "action_repeat": config.action_repeat}
    if config.states:
        size = observation_size(environment)
        world = StateModelConfig(size, environment.action_size, **config.model).to_dict()
        spec = state_spec(size, environment.action_size, **facts)
    else:
        sizes = {"image_size": config.image_size, **LEAN, **config.model}
        world = WorldModelConfig.preset(config.preset, action_size=environment.action_size, **sizes).to_dict()
        side = (3, config.image_size, config.image_size)
        drawn: dict[str, Any] = {"renderer": "raycast", "samples": environment.samples, "policy": "agent"}
        spec = EpisodeSpec(image_shape=side, action_size=environment.action_size, **drawn, **facts)
    agent = Agent(AgentConfig(config.observations, world, width=config.width, **facts)).to(device)
    source = torch.Generator(device) if device is not None and device.type != "cpu" else None
    length = 1000 // config.action_repeat + 1
    learner: WorldLearner
    if config.states:
        learner = StatesLearner(agent)
    else:
        learner = PixelsLearner(agent, config.seed, REMEMBERED, length, source, config.preset)
    actor_critic = ActorCritic(agent.actor, agent.critic, config.actor_critic)
    graphs = make_graphs(cuda_graph, agent, learner, actor_critic, source)
    store = None if directory is None else directory / "replay.h5.partial"  # made only now that all options fit
    replay = Replay(spec, store, max_bytes=config.replay_bytes, states=config.states)
    return Run(config, environment, agent, learner, actor_critic, replay, directory, source=source, graphs=graphs)
