"""Slot attention, all iterations in one op."""

from .op import slot_attention
from .weights import SlotAttentionWeights

__all__ = ["SlotAttentionWeights", "slot_attention"]
