"""Where attention will be: a recurrent prediction of the next map, before the next frame is seen."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aime.documented_tables import accepts_documented_names
from aime.nn import expect_shape, mlp

# Share of the map that is spread evenly: bounds the divergence from a posterior that jumps by log(R^2 / share).
UNIFORM_SHARE = 1e-3
INITIAL_PROPOSAL_LOGIT = -2.0  # start near "attention moves", the proposal takes 12 %
INITIAL_STAY_LOGIT = 2.0  # start near "no motion": the centre of the 5 x 5 kernel takes 24 %, its neighbours 3 % each


@dataclass(frozen=True)
class AttentionPriorOutput:
    """Predicted maps; with a time axis (B, T, ...) from `forward`, without it (B, ...) from `step`.

    Attributes:
        maps: (B, T, R, R), each sums to 1.
        log_maps: (B, T, R, R), their logs, finite.
        movement: (B, T, 2) predicted motion (x, y) of the centre in cells.
        states: (B, T, G, R, R) recurrent state after each step.
        state: (B, G, R, R) recurrent state after the last one.
    """

    maps: Tensor
    log_maps: Tensor
    movement: Tensor
    states: Tensor
    state: Tensor


@accepts_documented_names()
class ConvGRUCell(nn.Module):
    """Convolutional GRU (Ballas et al. 2016) whose input part can be computed for all steps at once.

    The reset gate acts after the recurrent convolution, as in cuDNN, so one convolution serves all three gates.

    Args:
        input_channels: channels of an input.
        hidden_channels: G.
        kernel_size: odd side of the recurrent kernel.
        input_kernel_size: odd side of the input kernel, the same when None.
    """

    def __init__(
        self, input_channels: int, hidden_channels: int, kernel_size: int = 3, input_kernel_size: int | None = None
    ) -> None:
        super().__init__()
        self.hidden_channels = hidden_channels
        side = kernel_size if input_kernel_size is None else input_kernel_size
        self.input_conv = nn.Conv2d(input_channels, 3 * hidden_channels, side, padding=side // 2)
        self.hidden_conv = nn.Conv2d(hidden_channels, 3 * hidden_channels, kernel_size, padding=kernel_size // 2)

    def advance(self, projected: Tensor, hidden: Tensor) -> Tensor:
        """New state from `input_conv` of the input (B, 3 G, R, R) and the old state (B, G, R, R)."""
        size = self.hidden_channels
        recurrent = self.hidden_conv(hidden)
        gates = torch.sigmoid(projected[:, : 2 * size] + recurrent[:, : 2 * size])
        reset, update = gates.chunk(2, 1)
        candidate = torch.tanh(projected[:, 2 * size :] + reset * recurrent[:, 2 * size :])
        return torch.lerp(candidate, hidden.to(candidate.dtype), update)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """New state from input (B, C, R, R) and old state (B, G, R, R)."""
        return self.advance(self.input_conv(x), hidden)


@accepts_documented_names()
class AttentionPrior(nn.Module):
    """(A_{t-1}, h_{t-1}, z_{t-1}) -> distribution of A_t, with a convolutional recurrent state carried over t.

    The predicted map is a mixture. Most of it is the old map transported: every cell sends its mass to the cells
    within `motion_radius`, in proportions that the recurrent state decides; mass is conserved, "no motion" is a special
    case, and the motion of the centre can be read off. The rest is a proposal anywhere on the grid, for what appears or
    jumps, and a small even share.

    Args:
        attention_resolution: R.
        hidden_dim: Hd.
        latent_dim: D.
        state_channels: G.
        kernel_size: side of the recurrent kernel.
        motion_radius: farthest move in cells per step along each axis.
        condition_width: hidden units of the network that reads [h; z].
    """

    border: Tensor
    offsets: Tensor

    def __init__(
        self,
        attention_resolution: int = 21,
        hidden_dim: int = 256,
        latent_dim: int = 32,
        *,
        state_channels: int = 32,
        kernel_size: int = 3,
        motion_radius: int = 2,
        condition_width: int = 64,
    ) -> None:
        super().__init__()
        self.resolution, self.hidden_dim, self.latent_dim = attention_resolution, hidden_dim, latent_dim
        self.state_channels, self.radius = state_channels, motion_radius
        moves = (2 * motion_radius + 1) ** 2
        self.cell = ConvGRUCell(1, state_channels, kernel_size, input_kernel_size=2 * motion_radius + 1)
        self.condition = mlp((hidden_dim + latent_dim, condition_width), final_norm=True)
        self.condition_gates = nn.Linear(condition_width, 3 * state_channels)
        self.condition_motion = nn.Linear(condition_width, moves)
        self.condition_proposal = nn.Linear(condition_width, state_channels)
        self.condition_mixture = nn.Linear(condition_width, 1)
        self.motion = nn.Conv2d(state_channels, moves, 1)
        self.proposal = nn.Conv2d(state_channels, 1, 1)
        self.position = nn.Parameter(0.1 * torch.randn(state_channels, attention_resolution, attention_resolution))
        for layer in (self.condition_motion, self.condition_mixture, self.motion):
            nn.init.normal_(layer.weight, std=0.01)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
        nn.init.constant_(self.condition_mixture.bias, INITIAL_PROPOSAL_LOGIT)
        with torch.no_grad():
            assert self.motion.bias is not None
            self.motion.bias[moves // 2] = INITIAL_STAY_LOGIT
        offsets, border = self._geometry()
        self.register_buffer("offsets", offsets, persistent=False)
        self.register_buffer("border", border, persistent=False)

    def _geometry(self) -> tuple[Tensor, Tensor]:
        """Moves (M, 2) as (x, y), and (M, R, R) with -inf where a move would leave the grid."""
        reach = torch.arange(-self.radius, self.radius + 1)
        dy, dx = (axis.flatten() for axis in torch.meshgrid(reach, reach, indexing="ij"))
        cells = torch.arange(self.resolution)
        to_y, to_x = cells[None, :] + dy[:, None], cells[None, :] + dx[:, None]  # (M, R)
        y_inside, x_inside = ((to >= 0) & (to < self.resolution) for to in (to_y, to_x))
        inside = y_inside[:, :, None] & x_inside[:, None, :]  # (M, R, R)
        return torch.stack((dx, dy), -1).float(), torch.zeros(inside.shape).masked_fill(~inside, -torch.inf)

    def uniform_map(self, batch_size: int) -> Tensor:
        """(B, R, R): what is known of A_{-1}."""
        cells = self.resolution**2
        return self.offsets.new_full((batch_size, self.resolution, self.resolution), 1 / cells)

    def initial_state(self, batch_size: int) -> Tensor:
        """(B, G, R, R) of zeros."""
        return self.offsets.new_zeros(batch_size, self.state_channels, self.resolution, self.resolution)

    def forward(
        self, previous_maps: Tensor, hidden: Tensor, latents: Tensor, state: Tensor | None = None
    ) -> AttentionPriorOutput:
        """Predict a sequence; step t sees entries up to t of each argument and nothing later.

        Args:
            previous_maps: (B, T, R, R), entry t is A_{t-1}; `uniform_map` before the first frame.
            hidden: (B, T, Hd), entry t is h_{t-1}.
            latents: (B, T, D), entry t is z_{t-1}.
            state: (B, G, R, R) carried from before, zeros when None.

        Raises:
            ValueError: shapes that do not fit.
        """
        side = self.resolution
        sizes = expect_shape(previous_maps, "B T R1 R2", "previous_maps", R1=side, R2=side)
        batch, steps = sizes["B"], sizes["T"]
        expect_shape(hidden, "B T Hd", "hidden", B=batch, T=steps, Hd=self.hidden_dim)
        expect_shape(latents, "B T D", "latents", B=batch, T=steps, D=self.latent_dim)
        maps = previous_maps.float().flatten(0, 1)  # (N, R, R), N = B * T
        condition = self.condition(torch.cat((hidden, latents), -1)).flatten(0, 1)  # (N, width)
        # log1p: a peak of the density R^2 p may reach R^2, the background is near 0
        projected = self.cell.input_conv(torch.log1p(side**2 * maps).unsqueeze(1))
        projected = projected + self.condition_gates(condition)[:, :, None, None]
        projected = projected.reshape(batch, steps, *projected.shape[1:])
        state = self.initial_state(batch) if state is None else state
        visited = []
        for inputs in projected.unbind(1):  # the only loop over time: one convolution of the state per step
            state = self.cell.advance(inputs, state)
            visited.append(state)
        states = torch.stack(visited, 1)  # (B, T, G, R, R)
        predicted, movement = self._predict(maps, states.flatten(0, 1), condition)
        return AttentionPriorOutput(
            maps=predicted.reshape(batch, steps, side, side),
            log_maps=predicted.log().reshape(batch, steps, side, side),
            movement=movement.reshape(batch, steps, 2),
            states=states,
            state=state,
        )

    def step(
        self, previous_map: Tensor, hidden: Tensor, latent: Tensor, state: Tensor | None = None
    ) -> AttentionPriorOutput:
        """One step, (B, R, R), (B, Hd), (B, D), (B, G, R, R) -> output without time axis: same numbers as `forward`."""
        output = self(previous_map.unsqueeze(1), hidden.unsqueeze(1), latent.unsqueeze(1), state)
        return AttentionPriorOutput(
            output.maps[:, 0], output.log_maps[:, 0], output.movement[:, 0], output.states[:, 0], output.state
        )

    def _predict(self, maps: Tensor, states: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Predicted maps (N, R, R) and motion (N, 2) from old maps, new states (N, G, R, R) and the condition."""
        logits = self.motion(states) + self.condition_motion(condition)[:, :, None, None]
        shares = torch.softmax(logits.float() + self.border, 1)  # (N, M, R, R), 0 across the border
        sent = shares * maps.unsqueeze(1)
        kernel, side = 2 * self.radius + 1, self.resolution
        transported = F.fold(sent.flatten(2), (side, side), kernel, padding=self.radius).squeeze(1)
        movement = sent.sum((-2, -1)) @ self.offsets  # (N, M) @ (M, 2)
        query = self.condition_proposal(condition)  # (N, G)
        anywhere = self.proposal(states).flatten(1) + query @ self.position.flatten(1)
        proposed = torch.softmax(anywhere.float(), -1).reshape(maps.shape)
        share = torch.sigmoid(self.condition_mixture(condition).float())[:, :, None]  # (N, 1, 1)
        mixed = torch.lerp(transported, proposed, share)
        return (1 - UNIFORM_SHARE) * mixed + UNIFORM_SHARE / side**2, movement
