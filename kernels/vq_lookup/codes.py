"""Codes as the scores of PyTorch's products take them: finite, of one size whatever their scale, duplicates known.

The score |c|^2 / 2 - x.c under- or overflows in float32 from |c| of 1e-19 or 1e19 on. Divided by 2^k, with 2^k about
the size of the head's largest code, it is c.c' / 2 - x.c' with c' = c / 2^k: of the size of x and c themselves, and
the same bits otherwise.
"""

import torch
from torch import Tensor

HEADROOM = 10  # c' stays below 2^-10, so that x.c' is finite for every finite x up to D = 1024
SMALL = -64  # but below this exponent of the codes every bit counts at the other end
LIMITS = {torch.float32: 126, torch.float64: 1022}  # of k: 2^k and 2^-k are normal numbers


def scale_codes(codebook: Tensor) -> tuple[Tensor, Tensor]:
    """c' (Q, V, D) and c.c' / 2 (Q, V) of a codebook (Q, V, D) in float32 or float64.

    A code that is not finite becomes zeros with half a norm of Inf: it is nobody's nearest. Nor is one that equals an
    earlier one: products round by the place of a column, so that argmin would take any of the two.
    """
    finite = codebook.isfinite().all(-1, keepdim=True)  # (Q, V, 1)
    codes = torch.where(finite, codebook, 0.0)
    exponent = torch.frexp(codes.abs().amax((1, 2), keepdim=True)).exponent  # (Q, 1, 1)
    limit = LIMITS[codebook.dtype]
    shift = torch.where(exponent > SMALL, exponent + HEADROOM, exponent).clamp(-limit, limit)
    scaled = codes * torch.ldexp(torch.ones_like(codes[:, :1, :1]), -shift)
    half_norms = (codes * scaled).sum(-1) / 2
    place = torch.arange(codes.shape[1], device=codes.device)
    return scaled, torch.where(finite.squeeze(-1) & (first_equal(codes) == place), half_norms, torch.inf)


def first_equal(codebook: Tensor) -> Tensor:
    """Lowest index of a code equal to each code, int64 (Q, V).

    Codes are sorted by a sum of their bits times odd numbers; what the sum calls equal is then compared.
    """
    heads, codes, width = codebook.shape
    place = torch.arange(codes, device=codebook.device).expand(heads, codes)
    bits = (codebook + 0.0).view(torch.int64 if codebook.dtype == torch.float64 else torch.int32)  # one sign of 0
    odd = torch.arange(1, 2 * width, 2, device=codebook.device)
    odd = (odd * 0x5851F42D4C957F2D) ^ ((odd * odd * 0x2545F4914F6CDD1D) << 1)  # wraps around; stays odd
    ordered, order = (bits * odd).sum(-1).sort(dim=-1, stable=True)  # (Q, V)
    begins = torch.ones_like(ordered, dtype=torch.bool)
    begins[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    start = torch.where(begins, place, 0).cummax(-1).values  # where the run of equal sums begins
    first = torch.empty_like(order).scatter_(-1, order, order.gather(-1, start))
    same = codebook.gather(1, first.unsqueeze(-1).expand_as(codebook)) == codebook
    return torch.where(same.all(-1), first, place)
