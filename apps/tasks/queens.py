"""Ways to place n queens on an n x n board so that none attacks another: counted by depth-first search over bit masks."""

from __future__ import annotations

#: the answers, OEIS A000170
PUBLISHED = {4: 2, 5: 10, 6: 4, 7: 40, 8: 92, 9: 352, 10: 724, 11: 2680, 12: 14200, 13: 73712, 14: 365596, 15: 2279184}


def starts(n: int, rows: int) -> list[tuple[int, ...]]:
    """Return all ways to place queens in the first `rows` rows: the tasks. Each is the columns, row by row."""
    placed: list[tuple[int, ...]] = [()]
    for row in range(rows):
        placed = [
            (*columns, column)
            for columns in placed
            for column in range(n)
            if all(column != other and abs(column - other) != row - at for at, other in enumerate(columns))
        ]
    return placed


def count(n: int, columns: tuple[int, ...]) -> int:
    """Return in how many ways the board that begins with `columns` can be completed."""
    full = (1 << n) - 1
    taken = falling = rising = 0
    for column in columns:
        bit = 1 << column
        taken, falling, rising = taken | bit, (falling | bit) >> 1, (rising | bit) << 1 & full

    def complete(taken: int, falling: int, rising: int) -> int:
        if taken == full:
            return 1
        total = 0
        free = full & ~(taken | falling | rising)
        while free:
            bit = free & -free
            free ^= bit
            total += complete(taken | bit, (falling | bit) >> 1, (rising | bit) << 1 & full)
        return total

    return complete(taken, falling, rising)
