"""Frames that are stored as pictures, one by one."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aime.data.errors import DataError
from aime.data.video import LARGEST_SIDE


def picture(file: Path, episode: int, step: int, value: Any) -> NDArray[np.uint8]:
    """A picture (3, H, W) of its bytes, or of a struct of bytes and path, of which nothing but the bytes is read.

    Raises:
        DataError: naming file, episode and step: it is no PNG or JPEG, or larger than any frame.
    """
    from PIL import Image

    try:
        data = value["bytes"] if isinstance(value, dict) else value
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            size = image.size
            if max(size) <= LARGEST_SIDE:
                return np.asarray(image.convert("RGB"), np.uint8).transpose(2, 0, 1)
        found = f"one of {size[0]} x {size[1]}"
    except (OSError, ValueError, TypeError, LookupError, SyntaxError, Image.DecompressionBombError) as error:
        found = str(error)
    expected = f"the bytes of a PNG or JPEG picture of at most {LARGEST_SIDE} x {LARGEST_SIDE}"
    raise DataError(file, episode=episode, key=f"picture of step {step}", expected=expected, found=found)
