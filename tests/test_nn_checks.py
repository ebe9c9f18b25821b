"""`check_tensor` of the older documents."""

from __future__ import annotations

import pytest
import torch

from aime.nn import check_tensor


def test_nan_and_infinity_are_named_with_their_place() -> None:
    values = torch.zeros(2, 3)
    check_tensor(values, "latents")
    check_tensor(torch.arange(3), "ids")
    values[1, 2], values[1, 0] = float("nan"), float("inf")
    with pytest.raises(ValueError, match=r"latents: expected finite values, found 2 of 6 .* the first at \(1, 0\)"):
        check_tensor(values, "latents")
