"""Rollouts of recurrence and prior on the model's own samples, with gradients through the samples: one fused operation.

    z_j = m_k + lambda * z_{j-1} + exp(s_k) eps_j,   (m, s) = components([h_j; c^_j]),   k ~ pi([h_j; c^_j])
    h_{j+1} = LayerNorm(LSTM([z_j; a_j]))

A rollout is a chain of small products, and under autograd most of its time is bookkeeping: a node for every operation,
a product and a sum into the whole weight for every frame. Here the forward pass records what the backward pass needs in
tensors over all frames; the backward pass carries the adjoint of (z, h, cell) from frame to frame by hand, and every
weight gets its gradient from one product over all frames at the end. The numbers are those of autograd, which
tests/world_model/test_latent_rollout.py holds to float64 rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aime.generative_prior.networks import LOG_LIMIT, smooth_bound
from aime.temporal_dynamics import LSTMState
from aime.world_model.compiled_rollout import CompiledRollout, compiled_obstacle
from aime.world_model.parts import WorldModelParts


@dataclass(frozen=True)
class RolloutNoise:
    """Randomness of N sampled frames.

    Attributes:
        sticks: (N, B, K - 1) uniform in (0, 1).
        choice: (N, B, K) Gumbel.
        normal: (N, B, D) standard normal.
    """

    sticks: Tensor
    choice: Tensor
    normal: Tensor

    @staticmethod
    def draw(parts: WorldModelParts, frames: int, batch: int, generator: torch.Generator | None) -> RolloutNoise:
        """Noise for ``frames`` frames of ``batch`` sequences."""
        components, latent = parts.config.max_components, parts.config.latent_dim
        like = parts.persistence
        exponential = torch.empty(frames, batch, components, device=like.device, dtype=like.dtype)
        exponential = exponential.exponential_(generator=generator).clamp_min_(1e-30)
        uniform = torch.rand(frames, batch, components - 1, device=like.device, dtype=like.dtype, generator=generator)
        edge = torch.finfo(like.dtype).eps
        normal = torch.randn(frames, batch, latent, device=like.device, dtype=like.dtype, generator=generator)
        return RolloutNoise(uniform.clamp_(edge, 1 - edge), -torch.log(exponential), normal)


def roll_latents(
    parts: WorldModelParts,
    hidden: Tensor,
    latent: Tensor,
    lstm: LSTMState,
    actions: Tensor,
    noise: RolloutNoise,
    *,
    compiled: bool | None = None,
) -> tuple[Tensor, Tensor]:
    """Sample z of N frames one after the other, each from the prior given the ones before.

    Differentiable in state, actions and the parameters of components, persistence, recurrence and its LayerNorm. The
    choice of a component is not differentiable; what it alone depends on (sticks, foreseen context) gets no gradient.

    Args:
        parts: the pillars.
        hidden: (B, Hd) h before the first of the frames.
        latent: (B, D) z before the first of the frames.
        lstm: raw recurrent state before the first of the frames, (B, L, Hd).
        actions: (B, N, A), each taken after the frame of its index.
        noise: of the N frames.
        compiled: in C++ (`compiled_rollout`), or as PyTorch operations (:class:`Recorder`). None: in C++ wherever
            `compiled_obstacle` knows nothing in its way: float32 weights on a CPU, products in float32 or bfloat16, a
            recurrence of one layer, no context, hidden units in multiples of 16. Anything else, every GPU among it, is
            for PyTorch.

    Returns:
        h after each frame (B, N, Hd), z of each frame (B, N, D).

    Raises:
        RuntimeError: ``compiled`` is true and something is in the way.
        ValueError: a tensor of another shape.
    """
    first, norm, _, last = parts.prior.component_net.network
    assert isinstance(first, nn.Linear)
    assert isinstance(norm, nn.LayerNorm)
    assert isinstance(last, nn.Linear)
    recurrent = [weight for layer in parts.dynamics.lstm.all_weights for weight in layer]
    weights = (
        *(first.weight, first.bias, norm.weight, norm.bias, last.weight, last.bias, parts.persistence),
        *(parts.dynamics.norm.weight, parts.dynamics.norm.bias, *recurrent),
    )
    dtype = parts.persistence.dtype  # the chain is float32 under autocast too: its products are small
    given = [tensor.to(dtype) for tensor in (actions, hidden, latent, lstm.hidden, lstm.cell)]
    device = hidden.device.type
    narrow = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else dtype
    obstacle = compiled_obstacle(parts, narrow)
    if compiled and obstacle is not None:
        raise RuntimeError(f"roll_latents: compiled=True cannot run: {obstacle}")
    found: tuple[Tensor, Tensor]
    if obstacle is None and compiled is not False:
        drawn = (noise.sticks, noise.choice, noise.normal)
        found = CompiledRollout.apply(parts, drawn, narrow, *given, *weights)  # type: ignore[no-untyped-call]
    else:
        found = Rollout.apply(parts, noise, narrow, *given, *weights)  # type: ignore[no-untyped-call]
    return found


class Rollout(torch.autograd.Function):
    """:func:`roll_latents` with its gradient by hand. Names of tensors over all frames end with an s."""

    @staticmethod
    def forward(
        ctx: Any,
        parts: WorldModelParts,
        noise: RolloutNoise,
        narrow: torch.dtype,
        actions: Tensor,
        hidden: Tensor,
        latent: Tensor,
        raw: Tensor,
        cell: Tensor,
        *weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """(B, N, Hd) and (B, N, D)."""
        recorder = Recorder(parts, weights, narrow)
        layers = raw.shape[1]
        raws, cells = [raw[:, k] for k in range(layers)], [cell[:, k] for k in range(layers)]
        hiddens, latents = [], []
        with torch.autocast(raw.device.type, enabled=False):
            for j in range(actions.shape[1]):
                latent = recorder.sample(hidden, latent, noise.sticks[j], noise.choice[j], noise.normal[j])  # (B, D)
                hidden, raws, cells = recorder.absorb(torch.cat([latent, actions[:, j]], 1), raws, cells)  # (B, Hd)
                hiddens.append(hidden)
                latents.append(latent)
        ctx.recorder, ctx.layers = recorder, layers
        return torch.stack(hiddens, 1), torch.stack(latents, 1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g_hiddens: Tensor, g_latents: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of actions, state and weights."""
        with torch.autocast(g_hiddens.device.type, enabled=False):
            given, weights = ctx.recorder.backward(g_hiddens.unbind(1), g_latents.unbind(1), ctx.layers)
        return None, None, None, *given, *weights


class Recorder:
    """Runs the frames of a rollout, keeps what the backward pass needs of each, and is that backward pass.

    Args:
        parts: the pillars.
        weights: those of :func:`roll_latents`, in its order.
        narrow: dtype in which matrices are multiplied, as autocast would; everything else keeps the weights' own.
    """

    def __init__(self, parts: WorldModelParts, weights: tuple[Tensor, ...], narrow: torch.dtype) -> None:
        self.parts, self.narrow = parts, narrow
        (self.w1, self.b1, self.n1, self.m1, self.w2, self.b2, self.persistence), rest = weights[:7], weights[7:]
        (self.n2, self.m2), recurrent = rest[:2], rest[2:]
        self.layers = [recurrent[k : k + 4] for k in range(0, len(recurrent), 4)]
        # one product a layer and frame: [input; hidden] times [W_ih, W_hh]
        self.joint = [torch.cat([w_ih, w_hh], 1).to(narrow) for w_ih, w_hh, _, _ in self.layers]  # (4 Hd, I + Hd)
        self.first, self.last = self.w1.to(narrow), self.w2.to(narrow)  # (W, Hd + Cc), (2 K D, W)
        self.bias = [b_ih + b_hh for _, _, b_ih, b_hh in self.layers]
        self.components, self.latent_size = parts.config.max_components, parts.config.latent_dim
        self.kept: dict[str, list[Tensor]] = {}

    def product(self, rows: Tensor, matrix: Tensor) -> Tensor:
        """rows (B, I) times a narrow matrix (I, O)."""
        found: Tensor = (rows.to(self.narrow) @ matrix).to(rows.dtype)
        return found

    def over_frames(self, gradients: Tensor, inputs: Tensor) -> Tensor:
        """Gradient (O, I) of a matrix from those of its results (M, O) and its inputs (M, I), M rows of all frames."""
        return (gradients.to(self.narrow).t() @ inputs.to(self.narrow)).to(gradients.dtype)

    def keep(self, **tensors: Tensor) -> None:
        """Remember tensors of this frame."""
        for name, tensor in tensors.items():
            self.kept.setdefault(name, []).append(tensor)

    def all(self, name: str) -> Tensor:
        """What was kept under a name, (N, ...)."""
        return torch.stack(self.kept[name])

    def sample(self, hidden: Tensor, previous: Tensor, uniform: Tensor, gumbel: Tensor, normal: Tensor) -> Tensor:
        """z (B, D) of the next frame from h (B, Hd) and z before it."""
        conditions = torch.cat([hidden, self.parts.foreseen_context(hidden)], 1)  # (B, Hd + Cc)
        log_weights = self.parts.prior.stick_breaking.log_weights(conditions, uniform)  # (B, K)
        index = (log_weights + gumbel).argmax(-1, keepdim=True)  # (B, 1)
        # not F.one_hot, which on a CPU looks at the largest index
        chosen = torch.zeros_like(log_weights, dtype=hidden.dtype).scatter_(1, index, 1.0)  # (B, K)
        linear = self.product(conditions, self.first.t()) + self.b1  # (B, W)
        normed, mean, rstd = torch.native_layer_norm(linear, [linear.shape[1]], self.n1, self.m1, 1e-5)
        active = F.silu(normed)  # (B, W)
        outputs = self.product(active, self.last.t()) + self.b2
        outputs = outputs.unflatten(1, (2, self.components, -1))  # (B, 2, K, D)
        own = (outputs * chosen[:, None, :, None]).sum(2)  # (B, 2, D)
        bounded = smooth_bound(own[:, 1])  # (B, D)
        deviation = bounded.exp() * normal  # (B, D)
        # d log_scale / d raw = 1 - tanh^2, and d z / d log_scale is the deviation
        slope = deviation * (1 - (bounded / LOG_LIMIT).square())
        latent: Tensor = own[:, 0] + self.persistence * previous + deviation
        self.keep(conditions=conditions, chosen=chosen, linear=linear, mean=mean, rstd=rstd)
        self.keep(normed=normed, active=active, slope=slope, previous=previous)
        return latent

    def absorb(self, x: Tensor, raws: list[Tensor], cells: list[Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """h (B, Hd) and raw states after an input x (B, D + A)."""
        new_raws, new_cells = [], []
        for k, (raw, cell) in enumerate(zip(raws, cells, strict=True)):
            joined = torch.cat([x, raw], 1)  # (B, I + Hd)
            gates = self.product(joined, self.joint[k].t()) + self.bias[k]  # (B, 4 Hd): i, f, g, o
            size = raw.shape[1]
            write, forget, candidate, out = gates.split(size, 1)
            write, forget, candidate, out = write.sigmoid(), forget.sigmoid(), candidate.tanh(), out.sigmoid()
            cell_after = torch.addcmul(forget * cell, write, candidate)
            squashed = cell_after.tanh()
            x = out * squashed  # (B, Hd), the next layer's input
            self.keep(**{f"joined{k}": joined, f"forget{k}": forget, f"out{k}": out, f"squashed{k}": squashed})
            self.keep(**{f"write{k}": write, f"candidate{k}": candidate, f"cell{k}": cell})
            new_raws.append(x)
            new_cells.append(cell_after)
        hidden, mean, rstd = torch.native_layer_norm(x, [x.shape[1]], self.n2, self.m2, 1e-5)
        self.keep(top=x, top_mean=mean, top_rstd=rstd)
        return hidden, new_raws, new_cells

    def backward(
        self, g_hiddens: tuple[Tensor, ...], g_latents: tuple[Tensor, ...], layers: int
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Gradients of actions, state (hidden, latent, raw, cell) and weights, from those of h and z of each frame."""
        slopes = [CellSlopes.of(self, k) for k in range(layers)]
        kept, width = self.kept, g_hiddens[0].shape[1]
        first = self.first[:, :width].contiguous()  # (W, Hd)
        g_hidden, g_latent = torch.zeros_like(g_hiddens[0]), torch.zeros_like(g_latents[0])
        g_raws, g_cells = [[torch.zeros_like(g_hidden) for _ in range(layers)] for _ in range(2)]
        for j in reversed(range(len(g_hiddens))):
            g_hidden = g_hidden + g_hiddens[j]  # (B, Hd), of h_{j+1}
            g_x = self.through_norm(g_hidden, kept["top"][j], kept["top_mean"][j], kept["top_rstd"][j], self.n2)
            for k in reversed(range(layers)):
                delta, g_cells[k] = slopes[k].step(j, g_x + g_raws[k], g_cells[k])  # (B, 4 Hd), (B, Hd)
                g_joined = self.product(delta, self.joint[k])  # (B, I + Hd)
                g_x, g_raws[k] = g_joined[:, :-width], g_joined[:, -width:]
            g_z, g_action = g_x[:, : self.latent_size], g_x[:, self.latent_size :]  # (B, D), (B, A)
            g_latent = g_latent + g_latents[j] + g_z  # (B, D), of z_j
            g_own = torch.stack([g_latent, g_latent * kept["slope"][j]], 1)  # (B, 2, D)
            g_outputs = (kept["chosen"][j][:, None, :, None] * g_own[:, :, None]).flatten(1)  # (B, 2 K D)
            g_normed = torch.ops.aten.silu_backward(self.product(g_outputs, self.last), kept["normed"][j])  # (B, W)
            g_linear = self.through_norm(g_normed, kept["linear"][j], kept["mean"][j], kept["rstd"][j], self.n1)
            self.keep(g_hidden=g_hidden, g_latent=g_latent, g_outputs=g_outputs, g_normed=g_normed)
            self.keep(g_linear=g_linear, g_action=g_action)
            g_hidden = self.product(g_linear, first)  # (B, Hd), of h_j; the foreseen context is a constant
            g_latent = g_latent * self.persistence  # (B, D), of z_{j-1}
        g_actions = torch.stack(kept["g_action"][::-1], 1)  # (B, N, A)
        given = (g_actions, g_hidden, g_latent, torch.stack(g_raws, 1), torch.stack(g_cells, 1))
        return given, self.weight_gradients(slopes)

    @staticmethod
    def through_norm(gradient: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor) -> Tensor:
        """Gradient of a LayerNorm's input (B, F)."""
        found: Tensor = torch.ops.aten.native_layer_norm_backward(
            gradient, x, [x.shape[1]], mean, rstd, weight, weight, [True, False, False]
        )[0]
        return found

    def norm_gradients(self, gradient: str, x: str, mean: str, rstd: str, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of a LayerNorm's weight and bias over all frames; names are those of what was kept."""
        g_output = torch.stack(self.kept[gradient][::-1]).flatten(0, 1)  # (N B, F), kept from the last frame on
        inputs, means, rstds = (self.all(name).flatten(0, 1) for name in (x, mean, rstd))
        _, g_weight, g_bias = torch.ops.aten.native_layer_norm_backward(
            g_output, inputs, [inputs.shape[1]], means, rstds, weight, weight, [False, True, True]
        )
        return g_weight, g_bias

    def weight_gradients(self, slopes: list[CellSlopes]) -> tuple[Tensor, ...]:
        """Gradients of the weights in the order of :func:`roll_latents`, one product over all frames each."""
        backwards = {
            name: torch.stack(self.kept[name][::-1]).flatten(0, 1) for name in ("g_latent", "g_outputs", "g_linear")
        }  # (N B, F), kept from the last frame on
        found = [
            self.over_frames(backwards["g_linear"], self.all("conditions").flatten(0, 1)),
            backwards["g_linear"].sum(0),
            *self.norm_gradients("g_normed", "linear", "mean", "rstd", self.n1),
            self.over_frames(backwards["g_outputs"], self.all("active").flatten(0, 1)),
            backwards["g_outputs"].sum(0),
            (backwards["g_latent"] * self.all("previous").flatten(0, 1)).sum(0),
            *self.norm_gradients("g_hidden", "top", "top_mean", "top_rstd", self.n2),
        ]
        for k, slope in enumerate(slopes):
            deltas = slope.deltas.flatten(2).flatten(0, 1)  # (N B, 4 Hd)
            joint = self.over_frames(deltas, self.all(f"joined{k}").flatten(0, 1))  # (4 Hd, I + Hd)
            bias, inputs = deltas.sum(0), self.layers[k][0].shape[1]
            found += [joint[:, :inputs], joint[:, inputs:], bias, bias]
        return tuple(found)


@dataclass
class CellSlopes:
    """Derivatives of an LSTM layer's cell at every frame, and the gradients of its gates as they are found.

    Attributes:
        into_cell: (N, B, Hd) d h / d c.
        gates: (N, B, 3, Hd) d c / d (i, f, g before their squashing).
        out: (N, B, Hd) d h / d (o before its squashing).
        forget: (N, B, Hd) d c / d (c before).
        deltas: (N, B, 4, Hd) gradients of i, f, g, o before their squashing.
    """

    into_cell: Tensor
    gates: Tensor
    out: Tensor
    forget: Tensor
    deltas: Tensor

    @staticmethod
    def of(recorder: Recorder, layer: int) -> CellSlopes:
        """From what a rollout kept of a layer."""
        names = ("write", "forget", "candidate", "out", "squashed", "cell")
        write, forget, candidate, out, squashed, cell = (recorder.all(f"{name}{layer}") for name in names)
        gates = torch.stack(
            [candidate * write * (1 - write), cell * forget * (1 - forget), write * (1 - candidate.square())], 2
        )
        deltas = gates.new_empty(*gates.shape[:2], 4, gates.shape[3])
        return CellSlopes(out * (1 - squashed.square()), gates, squashed * out * (1 - out), forget, deltas)

    def step(self, j: int, g_raw: Tensor, g_cell: Tensor) -> tuple[Tensor, Tensor]:
        """From the gradients (B, Hd) of h and c after frame j to those of the gates (B, 4 Hd) and of c before."""
        g_cell = torch.addcmul(g_cell, g_raw, self.into_cell[j])
        delta = self.deltas[j]  # (B, 4, Hd)
        torch.mul(g_cell[:, None], self.gates[j], out=delta[:, :3])
        torch.mul(g_raw, self.out[j], out=delta[:, 3])
        return delta.flatten(1), g_cell * self.forget[j]
