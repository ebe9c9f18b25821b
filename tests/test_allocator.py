"""Freed memory stays with the process where the C library can be told so."""

import sys

from aime.allocator import keep_freed_memory


def test_it_says_whether_the_c_library_listened() -> None:
    assert keep_freed_memory() == sys.platform.startswith("linux")
