"""Nearest code of a vector, and the statistics that move codebooks."""

from .op import VQLookup, vq_lookup, vq_statistics

__all__ = ["VQLookup", "vq_lookup", "vq_statistics"]
