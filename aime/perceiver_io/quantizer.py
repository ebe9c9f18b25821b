"""Vector quantisation with exponential-moving-average codebooks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aime import kernels
from aime.ranks import Ranks


@dataclass(frozen=True)
class Quantized:
    """Result of one quantisation.

    Attributes:
        values: (..., D) codes with the gradient of the encodings (straight-through).
        indices: (...) int32 code ids.
        commitment: () mean squared distance between encodings and their (constant) codes.
    """

    values: Tensor
    indices: Tensor
    commitment: Tensor


class VectorQuantizer(nn.Module):
    """One codebook learned by exponential moving averages (van den Oord et al. 2017, appendix A).

    The forward pass never changes the codebook: the caller hands the encodings of a batch to :meth:`update` after
    the optimizer step, so that a forward pass is a pure function and can be compared with another implementation.

    Args:
        num_codes: V, codes in the book.
        code_dim: D, size of a code.
        decay: weight of the past in the moving averages.
        revival_threshold: codes whose moving count falls below this are replaced by random encodings of the batch.
    """

    codebook: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self, num_codes: int, code_dim: int, *, decay: float = 0.99, revival_threshold: float = 0.05) -> None:
        super().__init__()
        self.num_codes, self.code_dim = num_codes, code_dim
        self.decay, self.revival_threshold = decay, revival_threshold
        codebook = torch.randn(num_codes, code_dim) / code_dim**0.5
        self.register_buffer("codebook", codebook)
        self.register_buffer("counts", torch.ones(num_codes))
        self.register_buffer("sums", codebook.clone())

    def forward(self, encodings: Tensor) -> Quantized:
        """Replace each encoding (..., D) by its nearest code; ties go to the lowest index."""
        found = kernels.vq_lookup(encodings.detach().float(), self.codebook)
        codes = found.quantized.to(encodings.dtype)
        commitment = (encodings - codes).float().square().mean()
        return Quantized(encodings + (codes - encodings).detach(), found.indices, commitment)

    def lookup(self, indices: Tensor) -> Tensor:
        """Codes (..., D) of integer ids (...).

        Raises:
            ValueError: an id lies outside 0..V-1.
        """
        if indices.numel() and (int(indices.min()) < 0 or int(indices.max()) >= self.num_codes):
            raise ValueError(
                f"indices: expected 0..{self.num_codes - 1}, found {int(indices.min())}..{int(indices.max())}"
            )
        return self.codebook[indices.long()]

    @torch.no_grad()
    def update(
        self,
        encodings: Tensor,
        indices: Tensor,
        generator: torch.Generator | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        """Move the codebook towards the encodings (B, ..., D) assigned to each code and revive unused codes.

        With ``ranks`` the encodings are this rank's rows of the batch; every rank gets the codebook of the whole batch.
        """
        flat, assigned = encodings.detach().float().reshape(-1, self.code_dim), indices.reshape(-1)
        counts, sums = kernels.vq_statistics(flat[:, None], assigned[:, None], self.num_codes)
        if ranks is not None:
            counts, sums = ranks.sum_(counts), ranks.sum_(sums)
        self.counts.lerp_(counts[0], 1.0 - self.decay)
        self.sums.lerp_(sums[0], 1.0 - self.decay)
        total = flat.shape[0] * (1 if ranks is None else ranks.size)
        picks = torch.randint(
            total, (self.num_codes,), device=generator.device if generator else flat.device, generator=generator
        ).to(flat.device)
        if ranks is None:
            fresh = flat[picks]
        else:
            fresh = ranks.sum_(_own_picks(flat, picks, flat.shape[0] // encodings.shape[0], ranks))
        dead = self.counts < self.revival_threshold
        self.sums.copy_(torch.where(dead[:, None], fresh, self.sums))
        self.counts.copy_(torch.where(dead, torch.ones_like(self.counts), self.counts))
        self.codebook.copy_(self.sums / self.counts.clamp_min(self.revival_threshold)[:, None])

    @torch.no_grad()
    def initialise(self, encodings: Tensor, *, iterations: int = 10, generator: torch.Generator | None = None) -> None:
        """k-means on encodings (..., D), started from a random subset of them."""
        flat = encodings.detach().float().reshape(-1, self.code_dim)
        order = torch.randperm(flat.shape[0], generator=generator).to(flat.device)
        starts = flat[order[torch.arange(self.num_codes, device=flat.device) % flat.shape[0]]]
        # Several codes may start at the same encoding (static background): a little noise lets them part.
        noise = torch.randn(starts.shape, generator=generator).to(flat.device)
        self.codebook.copy_(starts + 1e-3 * flat.std() * noise)
        for _ in range(iterations):
            indices = kernels.vq_lookup(flat[:, None], self.codebook[None]).indices
            counts, sums = kernels.vq_statistics(flat[:, None], indices, self.num_codes)
            means = sums[0] / counts[0].clamp_min(1.0)[:, None]
            self.codebook.copy_(torch.where(counts[0][:, None] > 0, means, self.codebook))
        self.counts.fill_(max(flat.shape[0] / self.num_codes, 1.0))
        self.sums.copy_(self.codebook * self.counts[:, None])


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


def codebook_statistics(indices: Tensor, num_codes: int, ranks: Ranks | None = None) -> tuple[Tensor, Tensor]:
    """Perplexity (exponential of the entropy of code use, in codes) and usage (share of codes seen) of ids (...).

    With ``ranks``, of the ids of all ranks together.
    """
    counts = torch.zeros(num_codes, device=indices.device)
    counts.index_add_(0, indices.reshape(-1).long(), torch.ones(indices.numel(), device=indices.device))
    if ranks is not None:
        ranks.sum_(counts)
    shares = counts / counts.sum().clamp_min(1.0)
    perplexity = torch.exp(-(shares * torch.where(shares > 0, shares, torch.ones_like(shares)).log()).sum())
    return perplexity, (counts > 0).float().mean()
