from collections.abc import Sequence
from typing import TypeAlias

Description: TypeAlias = tuple[int, int, Sequence[int], Sequence[int], int]

def instruction_sets() -> list[str]: ...
def vq_lookup(
    rows: Description,
    head_stride: int,
    codes: Description,
    codes_head_stride: int,
    row_count: int,
    heads: int,
    code_count: int,
    width: int,
    indices: int,
    distance: int,
    quantized: int,
    threads: int,
    instructions: str = "",
) -> None: ...
