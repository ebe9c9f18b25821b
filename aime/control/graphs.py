"""Acting, and the step of actor and critic, as CUDA graphs (`aime.training.step_graph`); the learners have their own.

All graphs of a run share one memory pool and one generator: what a replay returns is read before the next replay.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aime.control.actor_critic import ActorCritic
from aime.control.agent import Agent
from aime.control.imagination import Belief
from aime.control.world_learner import WorldLearner
from aime.control.worlds import AgentState
from aime.ranges import OptionError
from aime.temporal_dynamics import LSTMState
from aime.training.config import CudaGraph
from aime.training.rehearsal import sent
from aime.training.step_graph import Capture, CudaCapture, Input, StepGraph
from aime.training.stepping import Named, by_name, make_capturable, stacked
from aime.world_model.state import ObservationMemory

ACTING_WARM_UPS = 1
"""Calls of acting before one is captured: nothing in it makes a state of its own."""


class CapturedActing:
    """An agent's `act` as graphs, one for the first frame of an episode and one for the others.

    Args:
        agent: in evaluation mode whenever it acts; without a Perceiver, whose memory a graph does not hold.
        generator: source of exploration, on the agent's device.
        capture: how calls are recorded.
    """

    def __init__(self, agent: Agent, generator: torch.Generator, capture: Capture) -> None:
        self.agent, self.generator = agent, generator
        self._graph: StepGraph[tuple[Tensor, ...]] = StepGraph(
            self._act, capture, generator.device, warm_ups=ACTING_WARM_UPS
        )

    def act(self, observation: Tensor, state: AgentState | None, explore: bool) -> tuple[Tensor, AgentState]:
        """As `Agent.act`; actions are on the CPU, and the state is valid until the next call."""
        memory = None if state is None or state.memory is None else state.memory.frames
        inputs: dict[str, Input] = {
            "observation": sent(observation, self.generator.device),
            "hidden": None if state is None else state.hidden,
            "lstm_hidden": None if state is None else state.lstm.hidden,
            "lstm_cell": None if state is None else state.lstm.cell,
            "frames": memory,
        }
        action, hidden, lstm_hidden, lstm_cell, *frames = self._graph(inputs, explore=explore)
        kept = ObservationMemory(None, frames[0]) if frames else None
        return action.cpu(), AgentState(hidden, LSTMState(lstm_hidden, lstm_cell), kept)

    def _act(
        self,
        observation: Tensor,
        hidden: Tensor | None,
        lstm_hidden: Tensor | None,
        lstm_cell: Tensor | None,
        frames: Tensor | None,
        explore: bool,
    ) -> tuple[Tensor, ...]:
        state = None
        if hidden is not None:
            assert lstm_hidden is not None
            assert lstm_cell is not None
            memory = None if frames is None else ObservationMemory(None, frames)
            state = AgentState(hidden, LSTMState(lstm_hidden, lstm_cell), memory)
        action, after = self.agent.act(observation, state, explore, generator=self.generator)
        kept = () if after.memory is None or after.memory.frames is None else (after.memory.frames,)
        return action, after.hidden, after.lstm.hidden, after.lstm.cell, *kept


class CapturedActorCritic:
    """The step of actor, critic and adversary, imagination included, as one graph.

    Args:
        actor_critic: whose steps; its optimizers' learning rates become tensors.
        agent: whose world model and heads are used.
        generator: source of randomness, on the device.
        capture: how calls are recorded.
    """

    def __init__(self, actor_critic: ActorCritic, agent: Agent, generator: torch.Generator, capture: Capture) -> None:
        self.actor_critic, self.agent, self.generator = actor_critic, agent, generator
        make_capturable(list(actor_critic.optimizers().values()))
        self._graph: StepGraph[Named] = StepGraph(self._learn, capture, generator.device)

    def learn(self, start: Belief, replayed: tuple[Tensor, Tensor, Tensor], fraction: float) -> dict[str, Tensor]:
        """As `ActorCritic.learn`."""
        features, rewards, continues = replayed
        inputs: dict[str, Input] = {
            "hidden": start.hidden,
            "latent": start.latent,
            "lstm_hidden": start.lstm.hidden,
            "lstm_cell": start.lstm.cell,
            "features": features,
            "rewards": rewards,
            "continues": continues,
            "fraction": fraction,
        }
        return by_name(self._graph(inputs))

    def _learn(
        self,
        hidden: Tensor,
        latent: Tensor,
        lstm_hidden: Tensor,
        lstm_cell: Tensor,
        features: Tensor,
        rewards: Tensor,
        continues: Tensor,
        fraction: Tensor,
    ) -> Named:
        agent, start = self.agent, Belief(hidden, latent, LSTMState(lstm_hidden, lstm_cell))
        replayed = (features, rewards, continues)
        return stacked(
            self.actor_critic.learn(
                agent.world, agent.reward, agent.continues, start, replayed, fraction, self.generator
            )
        )


class Graphs:
    """What a run replays instead of launching its kernels one by one.

    Args:
        agent: which acts and is trained.
        learner: of its world model; its steps become graphs.
        actor_critic: likewise.
        generator: source of all randomness on the device.
        capture: how calls are recorded.
    """

    def __init__(
        self,
        agent: Agent,
        learner: WorldLearner,
        actor_critic: ActorCritic,
        generator: torch.Generator,
        capture: Capture,
    ) -> None:
        learner.use_graphs(capture, generator)
        self.actor_critic = CapturedActorCritic(actor_critic, agent, generator, capture)
        remembers = getattr(agent.world.config, "context_in_posterior", False)
        self.acting = None if remembers else CapturedActing(agent, generator, capture)


def make_graphs(
    wanted: CudaGraph, agent: Agent, learner: WorldLearner, actor_critic: ActorCritic, generator: torch.Generator | None
) -> Graphs | None:
    """Graphs of a run on a CUDA device, where they are not declined; OptionError where they are asked for elsewhere.

    Args:
        wanted: auto, on or off.
        agent: of the run.
        learner: of its world model.
        actor_critic: what trains its actor.
        generator: of the device; None on a CPU.
    """
    if generator is None:
        if wanted == "on":
            raise OptionError("cuda_graph: expected auto or off, since CUDA graphs need a CUDA device, found on")
        return None
    if wanted == "off":
        return None
    return Graphs(agent, learner, actor_critic, generator, CudaCapture(generator))
