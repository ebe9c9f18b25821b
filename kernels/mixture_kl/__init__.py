"""Stick-breaking mixture prior: weights, log-density, divergence."""

from .op import mixture_kl, mixture_log_prob, stick_log_weights

__all__ = ["mixture_kl", "mixture_log_prob", "stick_log_weights"]
