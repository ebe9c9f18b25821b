"""Kernels against their peers: identical inputs, interleaved rounds, bytes and operations counted."""
