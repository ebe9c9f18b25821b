"""Fused kernels with their references: one folder an op, one function a caller needs."""

from .dispatch import use_backend
from .frame_error import frame_error
from .frame_patches import frame_patches
from .mixture_kl import mixture_kl, mixture_log_prob, stick_log_weights
from .mixture_logistics import mixture_logistics_nll
from .slot_attention import SlotAttentionWeights, slot_attention
from .vq_lookup import VQLookup, vq_lookup, vq_statistics

__all__ = [
    "SlotAttentionWeights",
    "VQLookup",
    "frame_error",
    "frame_patches",
    "mixture_kl",
    "mixture_log_prob",
    "mixture_logistics_nll",
    "slot_attention",
    "stick_log_weights",
    "use_backend",
    "vq_lookup",
    "vq_statistics",
]
