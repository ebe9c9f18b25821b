"""Vector quantisation with exponential-moving-average codebooks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aime import kernels
from aime.nn import source_device
from aime.ranks import Ranks

Gradient = Literal["straight_through", "rotation"]
SHORTEST = 1e-6  # below it an encoding has no direction that could be rotated


@dataclass(frozen=True)
class Quantized:
    """Result of one quantisation.

    Attributes:
        values: (..., D) codes with a gradient towards the encodings.
        indices: (...) int32 code ids; (..., Q) with several heads.
        commitment: () mean squared distance between encodings and their (constant) codes.
    """

    values: Tensor
    indices: Tensor
    commitment: Tensor


class VectorQuantizer(nn.Module):
    """Codebooks learned by exponential moving averages (van den Oord et al. 2017, appendix A).

    The forward pass never changes the codebook: the caller hands the encodings of a batch to :meth:`update` after
    the optimizer step, so that a forward pass is a pure function and can be compared with another implementation.

    Args:
        num_codes: V, codes in a book.
        code_dim: D, size of an encoding; each of Q heads codes D / Q of it with a book of its own.
        decay: weight of the past in the moving averages.
        revival_threshold: codes whose moving count falls below this are replaced by random encodings of the batch.
        heads: Q, books.
        gradient: how the gradient passes the quantizer: as it is (``straight_through``), or rotated and rescaled like
            the encoding onto its code (``rotation``, Fifty et al. 2024, Restructuring vector quantization).

    Raises:
        ValueError: a size that the heads do not divide, or an unknown gradient.
    """

    codebook: Tensor
    """(V, D), or (Q, V, D / Q) with several heads."""
    counts: Tensor
    sums: Tensor

    def __init__(
        self,
        num_codes: int,
        code_dim: int,
        *,
        decay: float = 0.99,
        revival_threshold: float = 0.05,
        heads: int = 1,
        gradient: Gradient = "straight_through",
    ) -> None:
        super().__init__()
        if heads < 1 or code_dim % heads:
            raise ValueError(f"code_dim: expected a multiple of the heads, {heads}, found {code_dim}")
        if gradient not in get_args(Gradient):
            raise ValueError(f"gradient: expected one of {get_args(Gradient)}, found {gradient!r}")
        self.num_codes, self.code_dim, self.heads, self.gradient = num_codes, code_dim, heads, gradient
        self.decay, self.revival_threshold = decay, revival_threshold
        books = (heads,) if heads > 1 else ()
        codebook = torch.randn(*books, num_codes, code_dim // heads) / code_dim**0.5
        self.register_buffer("codebook", codebook)
        self.register_buffer("counts", torch.ones(*books, num_codes))
        self.register_buffer("sums", codebook.clone())

    def by_head(self, x: Tensor) -> Tensor:
        """Encodings (..., D) as they meet the books, (..., Q, D / Q); (..., D) with one head."""
        return x.unflatten(-1, (self.heads, -1)) if self.heads > 1 else x

    def forward(self, encodings: Tensor) -> Quantized:
        """Replace each encoding (..., D) by its nearest code, head by head; ties go to the lowest index."""
        parts = self.by_head(encodings)
        found = kernels.vq_lookup(parts.detach().float(), self.codebook)
        codes = found.quantized.to(encodings.dtype)
        commitment = (parts - codes).float().square().mean()
        values = rotate_onto(parts, codes) if self.gradient == "rotation" else parts + (codes - parts).detach()
        return Quantized(values.reshape(encodings.shape), found.indices, commitment)

    def lookup(self, indices: Tensor) -> Tensor:
        """Codes (..., D) of integer ids (...), or (..., Q) with several heads.

        Raises:
            ValueError: an id lies outside 0..V-1, or the last axis is not that of the heads.
        """
        if indices.numel() and (int(indices.min()) < 0 or int(indices.max()) >= self.num_codes):
            raise ValueError(
                f"indices: expected 0..{self.num_codes - 1}, found {int(indices.min())}..{int(indices.max())}"
            )
        if self.heads == 1:
            return self.codebook[indices.long()]
        if indices.shape[-1] != self.heads:
            raise ValueError(f"indices: expected a last axis of {self.heads} heads, found {tuple(indices.shape)}")
        heads = torch.arange(self.heads, device=indices.device)
        return self.codebook[heads, indices.long()].flatten(-2)

    def _flat(self, encodings: Tensor) -> Tensor:
        """(N, Q, D / Q) constant encodings."""
        return encodings.detach().float().reshape(-1, self.heads, self.code_dim // self.heads)

    def _drawn(self, flat: Tensor, order: Tensor) -> Tensor:
        """Encodings (Q, V, D / Q) of the rows ``order`` (V,)."""
        return flat[order.to(flat.device)].transpose(0, 1)

    @torch.no_grad()
    def update(
        self,
        encodings: Tensor,
        indices: Tensor,
        generator: torch.Generator | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        """Move the codebooks towards the encodings (B, ..., D) assigned to each code and revive unused codes.

        With ``ranks`` the encodings are this rank's rows of the batch; every rank gets the codebook of the whole batch.
        """
        flat = self._flat(encodings)
        counts, sums = kernels.vq_statistics(flat, indices.reshape(-1, self.heads), self.num_codes)
        if ranks is not None:
            counts, sums = ranks.sum_(counts), ranks.sum_(sums)
        self.counts.lerp_(counts.view_as(self.counts), 1.0 - self.decay)
        self.sums.lerp_(sums.view_as(self.sums), 1.0 - self.decay)
        total = flat.shape[0] * (1 if ranks is None else ranks.size)
        home = flat.device if generator is None else generator.device
        picks = torch.randint(total, (self.num_codes,), device=home, generator=generator).to(flat.device)
        if ranks is None:
            fresh = self._drawn(flat, picks)  # (Q, V, D / Q)
        else:
            own = _own_picks(flat.flatten(1), picks, flat.shape[0] // encodings.shape[0], ranks)  # (V, D)
            fresh = ranks.sum_(own).unflatten(1, (self.heads, -1)).transpose(0, 1)
        dead = self.counts < self.revival_threshold
        self.sums.copy_(torch.where(dead[..., None], fresh.reshape_as(self.sums), self.sums))
        self.counts.copy_(torch.where(dead, torch.ones_like(self.counts), self.counts))
        self.codebook.copy_(self.sums / self.counts.clamp_min(self.revival_threshold)[..., None])

    @torch.no_grad()
    def initialise(self, encodings: Tensor, *, iterations: int = 10, generator: torch.Generator | None = None) -> None:
        """k-means on encodings (..., D), head by head, started from a random subset of them."""
        flat = self._flat(encodings)
        home = source_device(generator)
        order = torch.randperm(flat.shape[0], device=home, generator=generator).to(flat.device)
        starts = self._drawn(flat, order[torch.arange(self.num_codes, device=flat.device) % flat.shape[0]]).reshape_as(
            self.codebook
        )
        # Several codes may start at the same encoding (static background): a little noise lets them part.
        noise = torch.randn(starts.shape, device=home, generator=generator).to(flat.device)
        self.codebook.copy_(starts + 1e-3 * flat.std() * noise)
        books = self.codebook.view(self.heads, self.num_codes, -1)
        for _ in range(iterations):
            indices = kernels.vq_lookup(flat, books).indices
            counts, sums = kernels.vq_statistics(flat, indices, self.num_codes)
            means = sums / counts.clamp_min(1.0)[..., None]
            books.copy_(torch.where(counts[..., None] > 0, means, books))
        self.counts.fill_(max(flat.shape[0] / self.num_codes, 1.0))
        self.sums.copy_(self.codebook * self.counts[..., None])


def _own_picks(flat: Tensor, picks: Tensor, rows: int, ranks: Ranks) -> Tensor:
    """(V, D): the encodings that numbers (V,) of the global batch pick among this rank's (N, D), zeros for the others.

    Args:
        flat: encodings of this rank, ``rows`` of each sequence.
        picks: numbers of encodings in the order of the global batch, whose sequence b belongs to rank b mod W.
        rows: encodings of one sequence.
        ranks: the processes.
    """
    sequence, row = picks // rows, picks % rows
    own = sequence % ranks.size == ranks.rank
    local = torch.where(own, sequence // ranks.size * rows + row, torch.zeros_like(row))
    return torch.where(own[:, None], flat[local], torch.zeros_like(flat[local]))


def rotate_onto(encodings: Tensor, codes: Tensor) -> Tensor:
    """Codes (..., D) whose gradient reaches the encodings (..., D) through a constant rotation and rescaling.

    With e and c of unit length and r = (e + c) / |e + c|, R = 1 - 2 r r' + 2 c e' takes e to c (Fifty et al. 2024,
    section 4.2): the angle between gradient and code is kept as the angle between gradient and encoding. An encoding
    without length has no direction; there the gradient passes as it is.
    """
    with torch.no_grad():
        length = encodings.norm(dim=-1, keepdim=True)
        scale = codes.norm(dim=-1, keepdim=True) / length.clamp_min(SHORTEST)
        e, c = F.normalize(encodings, dim=-1, eps=SHORTEST), F.normalize(codes, dim=-1, eps=SHORTEST)
        r = F.normalize(e + c, dim=-1, eps=SHORTEST)
    along = (encodings * e).sum(-1, keepdim=True)
    rotated = scale * (encodings - 2 * (encodings * r).sum(-1, keepdim=True) * r + 2 * along * c)
    moved = torch.where(length > SHORTEST, rotated, encodings)
    return moved + (codes - moved).detach()  # the codes themselves, to the last bit as far as a sum allows


def codebook_statistics(
    indices: Tensor, num_codes: int, heads: int = 1, ranks: Ranks | None = None
) -> tuple[Tensor, Tensor]:
    """Perplexity (exponential of the entropy of code use, in codes) and usage (share of codes seen) of ids (...).

    With several heads the ids are (..., Q), and both are means over the heads. With ``ranks``, of the ids
    of all ranks together.
    """
    flat = indices.reshape(-1, heads).long() + num_codes * torch.arange(heads, device=indices.device)  # (N, Q)
    counts = torch.zeros(heads * num_codes, device=indices.device)
    counts.index_add_(0, flat.flatten(), torch.ones(flat.numel(), device=indices.device))
    if ranks is not None:
        ranks.sum_(counts)
    counts = counts.view(heads, num_codes)
    shares = counts / counts.sum(-1, keepdim=True).clamp_min(1.0)
    entropy = -(shares * torch.where(shares > 0, shares, torch.ones_like(shares)).log()).sum(-1)  # (Q,)
    return torch.exp(entropy).mean(), (counts > 0).float().mean()
