"""Figures as the report writes them."""

from __future__ import annotations


def number(value: float | None, digits: int = 2) -> str:
    """A figure, or that it was not computed."""
    return '<span class="null">not computed</span>' if value is None else f"{value:.{digits}f}"


def duration(seconds: float | None) -> str | None:
    """Seconds, from two minutes on minutes."""
    if seconds is None:
        return None
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
