"""Cuts the plate into a grid of blocks, one per rank, and names each rank's neighbours."""

from __future__ import annotations

from dataclasses import dataclass

from apps.common.blocks import block
from pympx import MPI


def process_grid(ranks: int) -> tuple[int, int]:
    """Return (rows, columns) with rows * columns == ranks, as square as possible: the shortest rims, hence the fewest halo bytes."""
    columns = max(divisor for divisor in range(1, int(ranks**0.5) + 1) if ranks % divisor == 0)
    return ranks // columns, columns


@dataclass(frozen=True)
class Decomposition:
    """One rank's block [row_start, row_stop) x [column_start, column_stop) of the n x n interior points, and its neighbours' ranks."""

    size: int
    grid: tuple[int, int]
    row_start: int
    row_stop: int
    column_start: int
    column_stop: int
    below: int
    above: int
    left: int
    right: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the block, without its halo."""
        return self.row_stop - self.row_start, self.column_stop - self.column_start


def decompose(size: int, ranks: int, rank: int) -> Decomposition:
    """Cut `size` x `size` interior points over `ranks`; row 0 is the lowest. Raises ValueError when a block would be empty."""
    rows, columns = process_grid(ranks)
    if size < rows:
        raise ValueError(f"{size} x {size} points cannot be cut into {rows} x {columns} blocks; use --size {rows} or more")
    row, column = divmod(rank, columns)
    row_start, row_stop = block(size, rows, row)
    column_start, column_stop = block(size, columns, column)
    return Decomposition(
        size,
        (rows, columns),
        row_start,
        row_stop,
        column_start,
        column_stop,
        below=rank - columns if row > 0 else MPI.PROC_NULL,
        above=rank + columns if row < rows - 1 else MPI.PROC_NULL,
        left=rank - 1 if column > 0 else MPI.PROC_NULL,
        right=rank + 1 if column < columns - 1 else MPI.PROC_NULL,
    )
