"""From a collective's cache key, as bindings/comm.pyx makes it, to the schedule that the engine runs."""

from __future__ import annotations

from typing import Any

from ..collectives.schedule import encode
from ..collectives.select import choose

#: names of the builder's keywords, in the order of the key's last items; what precedes them is positional
_KEYWORDS: dict[str, tuple[str, ...]] = {
    "barrier": (),
    "bcast": ("root",),
    "reduce": ("root", "in_place", "commutative"),
    "allreduce": ("in_place", "commutative"),
    "gather": ("root", "in_place"),
    "gatherv": ("root", "in_place"),
    "scatter": ("root", "in_place"),
    "scatterv": ("root", "in_place"),
    "allgather": ("in_place",),
    "allgatherv": ("in_place",),
    "alltoall": ("in_place",),
    "alltoallv": ("in_place",),
    "reduce_scatter": ("in_place",),
    "reduce_scatter_block": ("in_place",),
    "scan": ("in_place",),
    "exscan": ("in_place",),
}
#: collectives whose first size is the same on all ranks, so that it may choose the algorithm
_SAME_SIZE_EVERYWHERE = frozenset(
    ("bcast", "reduce", "allreduce", "gather", "scatter", "allgather", "alltoall", "reduce_scatter_block", "scan", "exscan")
)


def build(rank: int, size: int, key: tuple[Any, ...]) -> bytes:
    """Return the encoded schedule for (collective, sizes in bytes ..., keywords ...)."""
    name, *rest = key
    names = _KEYWORDS[name]
    split = len(rest) - len(names)
    positional: list[Any] = [() if value is None else value for value in rest[:split]]
    nbytes = positional[0] if name in _SAME_SIZE_EVERYWHERE else 0
    schedule = choose(name, size, nbytes).build(rank, size, *positional, **dict(zip(names, rest[split:], strict=True)))
    return encode(schedule)
