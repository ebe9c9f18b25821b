"""Frames to whitened patches and their changes."""

from .op import frame_patches

__all__ = ["frame_patches"]
