"""Uneven block distribution of a range over parts."""

from __future__ import annotations


def block(total: int, parts: int, index: int) -> tuple[int, int]:
    """Return [start, stop) of block `index` when `total` items are cut into `parts` blocks whose sizes differ by at most one."""
    return index * total // parts, (index + 1) * total // parts


def block_sizes(total: int, parts: int) -> list[int]:
    """Return the sizes of all blocks, in order."""
    return [stop - start for start, stop in (block(total, parts, index) for index in range(parts))]
