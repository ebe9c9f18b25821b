"""The recurrent state: an LSTM with orthogonal recurrent blocks, over whole sequences or step by step."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aime.documented_tables import accepts_documented_names

FORGET_BIAS = 1.0
ORTHOGONAL_MODES = ("init", "manifold")


@dataclass(frozen=True)
class LSTMState:
    """Hidden and cell state, batch first: (B, L, Hd) each, or (B, T, L, Hd) from `LSTMLayer.unroll`."""

    hidden: Tensor
    cell: Tensor


@accepts_documented_names()
class LSTMLayer(nn.Module):
    """LSTM followed by LayerNorm; the sequence mode is one fused call, the step mode one call of the cell a layer.

    >>> lstm = LSTMLayer(input_size=5, hidden_size=8)
    >>> output, state = lstm(torch.zeros(2, 7, 5))
    >>> output.shape, state.hidden.shape
    (torch.Size([2, 7, 8]), torch.Size([2, 1, 8]))

    Args:
        input_size: size of one input.
        hidden_size: Hd.
        n_lstm_layers: L.
        use_orthogonal: start the four recurrent blocks of each layer orthogonal (Xavier uniform otherwise).
        orthogonal: "init" leaves them free afterwards; "manifold" makes them geoopt parameters, which stay orthogonal
            under `aime.temporal_dynamics.manifold.riemannian_adam`.

    Raises:
        ValueError: unknown `orthogonal`, or "manifold" without `use_orthogonal`.
        ImportError: "manifold" without geoopt installed.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        n_lstm_layers: int = 1,
        use_orthogonal: bool = True,
        *,
        orthogonal: str = "init",
    ) -> None:
        super().__init__()
        if orthogonal not in ORTHOGONAL_MODES:
            raise ValueError(f"orthogonal: expected one of {ORTHOGONAL_MODES}, found {orthogonal!r}")
        if orthogonal == "manifold" and not use_orthogonal:
            raise ValueError('orthogonal="manifold" needs use_orthogonal=True, found False')
        self.input_size, self.hidden_size, self.n_lstm_layers = input_size, hidden_size, n_lstm_layers
        self.lstm = nn.LSTM(input_size, hidden_size, n_lstm_layers, batch_first=True)
        self.norm = nn.LayerNorm(hidden_size)
        self.initial_hidden = nn.Parameter(torch.zeros(n_lstm_layers, hidden_size))
        self.initial_cell = nn.Parameter(torch.zeros(n_lstm_layers, hidden_size))
        self.reset_parameters(use_orthogonal)
        if orthogonal == "manifold":
            self._move_to_manifold()

    @torch.no_grad()
    def reset_parameters(self, use_orthogonal: bool = True) -> None:
        """Orthogonal (or Xavier) recurrent blocks, Xavier input blocks, biases 0 except the forget gate's 1.

        The learned initial state starts small but not at 0, where LayerNorm has no direction to normalise.
        """
        for layer in range(self.n_lstm_layers):
            weight_ih, weight_hh, bias_ih, bias_hh = self.lstm.all_weights[layer]
            for block in weight_hh.chunk(4):
                nn.init.orthogonal_(block) if use_orthogonal else nn.init.xavier_uniform_(block)
            for block in weight_ih.chunk(4):
                nn.init.xavier_uniform_(block)
            nn.init.zeros_(bias_ih)
            nn.init.zeros_(bias_hh)
            bias_ih[self.hidden_size : 2 * self.hidden_size] = FORGET_BIAS  # gates are ordered i, f, g, o
        nn.init.normal_(self.initial_hidden, std=0.1)
        nn.init.normal_(self.initial_cell, std=0.1)

    def _move_to_manifold(self) -> None:
        try:
            from aime.temporal_dynamics.manifold import gate_orthogonal_parameter
        except ImportError as error:
            raise ImportError('orthogonal="manifold" needs geoopt: pip install geoopt') from error
        for layer in range(self.n_lstm_layers):
            name = f"weight_hh_l{layer}"
            setattr(self.lstm, name, gate_orthogonal_parameter(getattr(self.lstm, name)))

    def initial_state(self, batch_size: int) -> LSTMState:
        """The learned state before the first input, (B, L, Hd)."""
        shape = (batch_size, self.n_lstm_layers, self.hidden_size)
        return LSTMState(self.initial_hidden.expand(shape), self.initial_cell.expand(shape))

    def output(self, state: LSTMState) -> Tensor:
        """What the model reads of a state, LayerNorm of the top layer's hidden: (..., L, Hd) -> (..., Hd)."""
        normalised: Tensor = self.norm(state.hidden[..., -1, :])
        return normalised

    def forward(self, x: Tensor, state: LSTMState | None = None) -> tuple[Tensor, LSTMState]:
        """Run over a sequence.

        Args:
            x: (B, T, input_size).
            state: what came before, `initial_state(B)` when None.

        Returns:
            outputs (B, T, Hd), normalised, output t having absorbed x_0 .. x_t; and the state after the last input.

        Raises:
            ValueError: x of another shape.
        """
        self._check(x, "B T input_size")
        state = self.initial_state(len(x)) if state is None else state
        hidden, (last_hidden, last_cell) = self.lstm(x, self._layers_first(state, x))
        return self.norm(hidden), LSTMState(last_hidden.transpose(0, 1), last_cell.transpose(0, 1))

    def step(self, x: Tensor, state: LSTMState | None = None) -> tuple[Tensor, LSTMState]:
        """One input (B, input_size) -> output (B, Hd) and the new state; the same numbers as `forward`.

        By the cell's own operator, layer by layer: a fused call over one frame costs three times as much on a CPU.
        """
        self._check(x, "B input_size")
        state = self.initial_state(len(x)) if state is None else state
        hiddens, cells = [], []
        for layer, weights in enumerate(self.lstm.all_weights):
            before = (state.hidden[:, layer].to(x.dtype), state.cell[:, layer].to(x.dtype))  # (B, Hd) each
            x, cell = torch.lstm_cell(x, before, *weights)
            hiddens.append(x)
            cells.append(cell)
        return self.norm(x), LSTMState(torch.stack(hiddens, 1), torch.stack(cells, 1))

    def unroll(self, x: Tensor, state: LSTMState | None = None) -> tuple[Tensor, LSTMState]:
        """`forward` that also returns the state after every input: (B, T, Hd) and (B, T, L, Hd).

        The fused call keeps the cell of the last step only. With all hidden states known, the gates of all steps are
        one product; the cells follow from c_t = f_t c_{t-1} + i_t g_t, a linear recurrence solved in log2(T) doublings.
        """
        self._check(x, "B T input_size")
        state = self.initial_state(len(x)) if state is None else state
        hiddens, cells, layer_input = [], [], x
        for layer, weights in enumerate(self.lstm.all_weights):
            before, cell = state.hidden[:, layer].to(x.dtype), state.cell[:, layer].to(x.dtype)  # (B, Hd) each
            hx = (before.unsqueeze(0).contiguous(), cell.unsqueeze(0).contiguous())  # what cuDNN asks for
            hidden, _, _ = torch.lstm(layer_input, hx, list(weights), True, 1, 0.0, self.training, False, True)
            previous = torch.cat((before.unsqueeze(1), hidden[:, :-1]), 1)
            weight_ih, weight_hh, bias_ih, bias_hh = weights
            gates = nn.functional.linear(layer_input, weight_ih, bias_ih)
            gates = gates + nn.functional.linear(previous, weight_hh, bias_hh)  # (B, T, 4 Hd)
            write, forget, candidate, _ = gates.chunk(4, -1)
            added = torch.sigmoid(write) * torch.tanh(candidate)
            cells.append(linear_recurrence(torch.sigmoid(forget), added, cell))
            hiddens.append(hidden)
            layer_input = hidden
        return self.norm(layer_input), LSTMState(torch.stack(hiddens, 2), torch.stack(cells, 2))

    @staticmethod
    def _layers_first(state: LSTMState, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden, cell = state.hidden.transpose(0, 1), state.cell.transpose(0, 1)
        return hidden.to(x.dtype).contiguous(), cell.to(x.dtype).contiguous()

    def _check(self, x: Tensor, axes: str) -> None:
        if x.dim() != len(axes.split()) or x.shape[-1] != self.input_size:
            expected = axes.replace("input_size", f"input_size={self.input_size}").replace(" ", ", ")
            raise ValueError(f"x: expected ({expected}), found {tuple(x.shape)}")


def linear_recurrence(decay: Tensor, added: Tensor, initial: Tensor) -> Tensor:
    """y_t = decay_t y_{t-1} + added_t for all t by recursive doubling (Hillis and Steele 1986).

    Args:
        decay: (B, T, F) in [0, 1].
        added: (B, T, F).
        initial: (B, F), y before the first step.

    Returns:
        (B, T, F).
    """
    offset = 1
    while offset < added.shape[1]:
        earlier_added = nn.functional.pad(added, (0, 0, offset, 0))[:, : added.shape[1]]
        earlier_decay = nn.functional.pad(decay, (0, 0, offset, 0), value=1.0)[:, : added.shape[1]]
        added = added + decay * earlier_added
        decay = decay * earlier_decay
        offset *= 2
    return added + decay * initial.unsqueeze(1)
