"""Fused kernels with their references."""
