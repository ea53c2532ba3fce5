"""Which algorithm serves which collective: a table of pure functions, asked with what all ranks know alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from . import allgather, allreduce, alltoall, barrier, bcast, gather, reduce, reduce_scatter, scan, scatter
from .schedule import Schedule


@dataclass(frozen=True, slots=True)
class Algorithm:
    """A way to do a collective."""

    collective: str
    name: str
    #: called as (rank, size, sizes ..., keywords); its docstring has the costs
    build: Callable[..., Schedule]


_TABLE = {
    a.collective: a
    for a in (
        Algorithm("allgather", "ring", allgather.build),
        Algorithm("allgatherv", "ring", allgather.build_v),
        Algorithm("allreduce", "recursive doubling", allreduce.build),
        Algorithm("alltoall", "pairwise exchange", alltoall.build),
        Algorithm("alltoallv", "pairwise exchange", alltoall.build_v),
        Algorithm("barrier", "dissemination", barrier.build),
        Algorithm("bcast", "binomial tree", bcast.build),
        Algorithm("exscan", "recursive doubling of distance", scan.build_exclusive),
        Algorithm("gather", "linear", gather.build),
        Algorithm("gatherv", "linear", gather.build_v),
        Algorithm("reduce", "binomial tree", reduce.build),
        Algorithm("reduce_scatter", "direct exchange", reduce_scatter.build_v),
        Algorithm("reduce_scatter_block", "direct exchange", reduce_scatter.build),
        Algorithm("scan", "recursive doubling of distance", scan.build),
        Algorithm("scatter", "linear", scatter.build),
        Algorithm("scatterv", "linear", scatter.build_v),
    )
}


def choose(collective: str, size: int, nbytes: int) -> Algorithm:
    """Return the algorithm for a collective over `size` ranks with blocks of `nbytes`; every rank must ask with the same numbers.

    nbytes is 0 where not all ranks know the sizes (gatherv, scatterv, alltoallv). There is one algorithm for each collective now,
    whatever the sizes.
    """
    del size, nbytes
    try:
        return _TABLE[collective]
    except KeyError:
        raise ValueError(f"no collective is called {collective!r}; there are {', '.join(_TABLE)}") from None


def describe() -> str:
    """Return the table for people, a line per collective."""
    return "\n".join(f"{a.collective:<20} any size, any bytes: {a.name} ({a.build.__module__}.{a.build.__name__})" for a in _TABLE.values())
