"""Calls to one rank under one deadline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar, overload

from . import calls

_P = ParamSpec("_P")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Peer:
    """A rank, and the seconds that calls to it may take: made by to()."""

    rank: int
    deadline: float | None = None

    @overload
    def call(self, function: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> calls.Call[_T]: ...
    @overload
    def call(self, function: str, /, *args: Any, **kwargs: Any) -> calls.Call[Any]: ...
    def call(self, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """As pympx.rpc.call; the Call raises DeadlineExceeded once the deadline has passed."""
        return calls.begin(self.rank, function, args, kwargs, self.deadline or 0.0)

    def notify(self, function: Callable[..., object] | str, /, *args: Any, **kwargs: Any) -> None:
        """As pympx.rpc.notify; the deadline means nothing to it."""
        calls.notify(self.rank, function, *args, **kwargs)


def to(rank: int, *, deadline: float | None = None) -> Peer:
    """Return rank `rank` of COMM_WORLD as a Peer whose calls end within `deadline` seconds (None: no limit).

    A call that has not begun by then is withdrawn. Raises ValueError unless the deadline is positive.
    """
    if deadline is not None and not deadline > 0:
        raise ValueError(f"deadline: expecting seconds above 0, not {deadline!r}")
    return Peer(rank, deadline)
