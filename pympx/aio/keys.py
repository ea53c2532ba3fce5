"""Who waits for which key. Keys are reported to whichever loop's turn finds them, so one dictionary serves all loops."""

from __future__ import annotations

import itertools
from collections.abc import Callable

#: is told whom to wake, from any thread, and returns what undoes that; None: there is nothing to wait for
Begin = Callable[[Callable[[], None]], Callable[[], None] | None]

#: by key: what to do when its request has ended, from any thread
waiting: dict[int, Callable[[], None]] = {}
_numbers = itertools.count(2, 2)  # odd ones are calls' (rpc/calls.pyx)


def new() -> int:
    """Return a key that nobody has."""
    return next(_numbers)


def report(ended: list[int]) -> None:
    """Wake those who wait for keys that turn() returned."""
    for key in ended:
        wake = waiting.pop(key, None)
        if wake is not None:
            wake()
