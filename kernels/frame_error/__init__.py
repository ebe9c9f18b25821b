"""Squared error of decoded images against whitened frames."""

from .op import frame_error

__all__ = ["frame_error"]
