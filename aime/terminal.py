"""Text from outside, made safe to print."""

from __future__ import annotations


def printable(text: object) -> str:
    r"""The text with every character that is not printable written as an escape.

    A file, a directory or a process may carry any name; printed as they are, control characters move the cursor of a
    terminal, colour it or answer in the user's name.

    >>> printable("red: \x1b[31m")
    'red: \\x1b[31m'
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))
