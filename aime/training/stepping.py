"""One training step of a session: as it is, or as replays of CUDA graphs (`aime.training.step_graph`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from aime.data import Batch
from aime.encoder_decoder import Posterior
from aime.multi_task_learning import RGB, Sum
from aime.ranges import OptionError
from aime.ranks import Ranks
from aime.training.config import TrainConfig
from aime.training.precision import autocast_dtype
from aime.training.protocol import SequenceModel, optimizers_of
from aime.training.rehearsal import PosteriorMemory, RehearsingModel
from aime.training.step_graph import Capture, CudaCapture, Input, StepGraph
from aime.world_model import RememberedSequences

REHEARSAL_WARM_UPS = 1
"""A rehearsal has a graph for every number of frames that it is shown, and the steps before it have warmed up."""


class CapturedSteps:
    """Training step and rehearsals of a model as graphs, with the results of the calls themselves.

    Inside of a graph are the forward pass, the tasks' backward passes, the balancer, the optimizers (critics' too), and
    codebook and teacher; a step whose gradients are not finite is skipped on the device. Outside are learning rates and
    beta, which are written into tensors that the graph reads, and everything that is kept of a step.

    Args:
        model: with an optimizer and a balancer; its optimizers' learning rates become tensors.
        config: of the run.
        generator: source of randomness, on the model's device.
        autocast: dtype of mixed precision.
        capture: how calls are recorded.
    """

    def __init__(
        self,
        model: SequenceModel,
        config: TrainConfig,
        generator: torch.Generator,
        autocast: torch.dtype | None,
        capture: Capture,
    ) -> None:
        self.model, self.config, self.generator, self.autocast = model, config, generator, autocast
        device = generator.device
        self._steps: StepGraph[Stepped] = StepGraph(self._step, capture, device)
        self._rehearsals: StepGraph[Named] = StepGraph(self._rehearse, capture, device, warm_ups=REHEARSAL_WARM_UPS)

    def step(self, batch: Batch, beta: float, memory: PosteriorMemory | None = None) -> dict[str, Tensor]:
        """Metrics of one step on a batch; its posteriors go to the memory."""
        inputs: dict[str, Input] = {
            "observations": batch.observations,
            "actions": batch.actions,
            "rewards": batch.rewards,
            "continues": batch.continues,
            "beta": beta,
        }
        metrics, posterior = self._steps(inputs)
        if memory is not None:
            assert posterior is not None
            memory.store(batch, Posterior(*posterior))
        return by_name(metrics)

    def rehearse(
        self,
        sequences: RememberedSequences,
        seen: int,
        rolled: int | None = None,
        *,
        autocast: torch.dtype | None = None,
        generator: torch.Generator | None = None,
        ranks: Ranks | None = None,
    ) -> dict[str, Tensor]:
        """As `RehearsingModel.rehearse`, with this object's generator and mixed precision."""
        assert generator is self.generator
        assert autocast == self.autocast
        assert ranks is None
        inputs = {"mean": sequences.mean, "log_scale": sequences.log_scale, "actions": sequences.actions}
        return by_name(self._rehearsals(inputs, seen=seen, rolled=rolled))

    def _step(self, observations: Tensor, actions: Tensor, rewards: Tensor, continues: Tensor, beta: Tensor) -> Stepped:
        kept: list[Posterior] = []
        remember = {"after_pass": lambda result: kept.append(result.perceived.posterior)}
        metrics = self.model.training_step_sequence(
            observations,
            actions,
            rewards,
            continues,
            beta=beta,
            grad_clip=self.config.grad_clip,
            autocast=self.autocast,
            generator=self.generator,
            **(remember if self.config.rehearsals else {}),
            **self.config.loss_weights(),
        )
        posterior = (kept[0].mean.detach(), kept[0].log_scale.detach()) if kept else None
        return stacked(metrics), posterior

    def _rehearse(self, mean: Tensor, log_scale: Tensor, actions: Tensor, seen: int, rolled: int | None) -> Named:
        assert isinstance(self.model, RehearsingModel)
        sequences = RememberedSequences(mean, log_scale, actions)
        return stacked(self.model.rehearse(sequences, seen, rolled, autocast=self.autocast, generator=self.generator))


Named = tuple[tuple[str, ...], Tensor]
"""Names of n metrics, and their values (n,)."""
Stepped = tuple[Named, tuple[Tensor, Tensor] | None]
"""Metrics, and mean and log-scale of the posterior where they are remembered."""


def stacked(metrics: dict[str, Tensor]) -> Named:
    """Metrics as one tensor: read with one launch instead of one for each."""
    return tuple(metrics), torch.stack([value.detach().float() for value in metrics.values()])


def by_name(metrics: Named) -> dict[str, Tensor]:
    """Copies of metrics by name, which no later replay writes to."""
    names, values = metrics
    return dict(zip(names, values.clone().unbind(), strict=True))


def obstacle(model: SequenceModel, device: torch.device, ranks: Ranks | None) -> str | None:
    """Why the steps of a run cannot be captured, None where they can."""
    if device.type != "cuda":
        return f"CUDA graphs need a CUDA device, and this run is on {device.type}"
    if ranks is not None:
        return f"it is captured for a run of one process, and this one has {ranks.size}"
    if not getattr(model, "static_step", False):
        return f"{type(model).__name__} does not say that its steps are alike (static_step)"
    optimizer, balancer = optimizers_of(model)
    if not isinstance(balancer, RGB | Sum):
        return f"the balancer {type(balancer).__name__} computes on the host"
    if not isinstance(optimizer, torch.optim.AdamW):
        return f"{type(optimizer).__name__} decides on the host whether a step is skipped"
    return None


def make_capturable(optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Learning rates as tensors, which a captured step reads anew each time."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            device = group["params"][0].device
            group["lr"] = torch.full((), float(group["lr"]), device=device)
            group["capturable"] = device.type == "cuda"
        # PyTorch warns of steps without a capture under this switch, which those that warm up are
        optimizer._warned_capturable_if_run_uncaptured = True


def make_captured(
    model: SequenceModel,
    optimizers: Sequence[torch.optim.Optimizer],
    config: TrainConfig,
    generator: torch.Generator,
    ranks: Ranks | None,
) -> CapturedSteps | None:
    """Graphs for a run where its configuration asks for them, or leaves it open and nothing is in the way.

    Raises:
        OptionError: they are asked for and cannot be.
    """
    wanted, device = config.cuda_graph, generator.device
    reason = None if wanted == "off" else obstacle(model, device, ranks)
    if wanted == "on" and reason is not None:
        raise OptionError(f"cuda_graph: expected auto or off, since {reason}; found on")
    if wanted == "off" or reason is not None:
        return None
    make_capturable(optimizers)
    return CapturedSteps(model, config, generator, autocast_dtype(config, device), CudaCapture(generator))
