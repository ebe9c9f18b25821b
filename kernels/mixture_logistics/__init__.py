"""Discretised mixture-of-logistics likelihood."""

from .op import mixture_logistics_nll

__all__ = ["mixture_logistics_nll"]
