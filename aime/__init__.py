"""AIME: a hierarchical variational world model for visual control."""

__version__ = "0.1.0"
