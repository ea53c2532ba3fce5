"""Requests: the cold methods and the waiting for many (MPI 4.1, section 3.7.5)."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

from ..bindings import request as _request
from ..bindings.request import Request as _Request
from .handles import Handled, Table
from .status import Status
from .unsupported import complete

_Requests = Sequence[_Request]
_Statuses = list[Status] | Sequence[Status] | None


@complete
class Request(_Request, Handled):
    """An operation in flight; REQUEST_NULL, which is false, once it is complete."""

    __slots__ = ()
    _table: Table[Any] = Table(0x2C000000)

    def __await__(self) -> Generator[Any, Any, Any]:
        """Wait in asyncio, trio or anyio; the value is that of wait(). A wait that is cancelled leaves the operation going on."""
        if not self.Get_status():
            from ..aio.loops import until_done

            yield from until_done(self)
        return self.wait()

    @classmethod
    def Waitall(cls, requests: _Requests, statuses: _Statuses = None) -> bool:
        """Wait for all; return True. A list of statuses grows as needed."""
        _request.wait_all(requests, statuses, Status)
        return True

    @classmethod
    def waitall(cls, requests: _Requests, statuses: _Statuses = None) -> list[Any]:
        """Wait for all; return the received objects, None for other operations."""
        return _request.wait_all(requests, statuses, Status)

    @classmethod
    def Testall(cls, requests: _Requests, statuses: _Statuses = None) -> bool:
        """Return whether all are complete; if so they are freed."""
        return _request.test_all(requests, statuses, Status) is not None

    @classmethod
    def testall(cls, requests: _Requests, statuses: _Statuses = None) -> tuple[bool, list[Any] | None]:
        """Return (whether all are complete, the received objects or None)."""
        done = _request.test_all(requests, statuses, Status)
        return done is not None, done

    @classmethod
    def Waitany(cls, requests: _Requests, status: Status | None = None) -> int:
        """Wait for one; return its index, UNDEFINED if none is active."""
        return _request.wait_any(requests, status)[0]

    @classmethod
    def waitany(cls, requests: _Requests, status: Status | None = None) -> tuple[int, Any]:
        """Wait for one; return (index, received object)."""
        return _request.wait_any(requests, status)

    @classmethod
    def Testany(cls, requests: _Requests, status: Status | None = None) -> tuple[int, bool]:
        """Return (index, whether one is complete)."""
        return _request.test_any(requests, status)[:2]

    @classmethod
    def testany(cls, requests: _Requests, status: Status | None = None) -> tuple[int, bool, Any]:
        """Return (index, whether one is complete, received object)."""
        return _request.test_any(requests, status)

    @classmethod
    def Waitsome(cls, requests: _Requests, statuses: _Statuses = None) -> list[int] | None:
        """Wait for at least one; return the indices of all that are complete, None if none is active."""
        done = _request.some(requests, statuses, Status, True)
        return None if done is None else done[0]

    @classmethod
    def waitsome(cls, requests: _Requests, statuses: _Statuses = None) -> tuple[list[int] | None, list[Any] | None]:
        """Wait for at least one; return (indices, received objects)."""
        return _request.some(requests, statuses, Status, True) or (None, None)

    @classmethod
    def Testsome(cls, requests: _Requests, statuses: _Statuses = None) -> list[int] | None:
        """Return the indices of all that are complete, None if none is active."""
        done = _request.some(requests, statuses, Status, False)
        return None if done is None else done[0]

    @classmethod
    def testsome(cls, requests: _Requests, statuses: _Statuses = None) -> tuple[list[int] | None, list[Any] | None]:
        """Return (indices, received objects) of all that are complete."""
        return _request.some(requests, statuses, Status, False) or (None, None)

    @classmethod
    def Get_status_any(cls, requests: _Requests, status: Status | None = None) -> tuple[int, bool]:
        """Return (index, whether one is complete) without freeing it."""
        return _request.status_any(requests, status)

    @classmethod
    def get_status_any(cls, requests: _Requests, status: Status | None = None) -> tuple[int, bool]:
        """Return (index, whether one is complete) without freeing it."""
        return cls.Get_status_any(requests, status)

    @classmethod
    def Get_status_all(cls, requests: _Requests, statuses: _Statuses = None) -> bool:
        """Return whether all are complete, without freeing them."""
        return _request.status_all(requests, statuses, Status)

    @classmethod
    def get_status_all(cls, requests: _Requests, statuses: _Statuses = None) -> bool:
        """Return whether all are complete, without freeing them."""
        return cls.Get_status_all(requests, statuses)

    @classmethod
    def Get_status_some(cls, requests: _Requests, statuses: _Statuses = None) -> list[int] | None:
        """Return the indices of all that are complete, without freeing them; None if none is active."""
        return _request.status_some(requests, statuses, Status)

    @classmethod
    def get_status_some(cls, requests: _Requests, statuses: _Statuses = None) -> list[int] | None:
        """Return the indices of all that are complete, without freeing them; None if none is active."""
        return cls.Get_status_some(requests, statuses)


@complete
class Prequest(Request):
    """A persistent request: inactive between two starts (MPI 4.1, section 3.9)."""

    __slots__ = ()

    def __init__(self, request: Prequest | None = None) -> None:
        if request is not None and not isinstance(request, Prequest):
            raise TypeError(f"request: expecting Prequest, not {type(request).__name__}")

    def Start(self) -> None:
        """Start the operation again."""
        _request.start_persistent(self)

    @classmethod
    def Startall(cls, requests: list[Prequest]) -> None:
        """Start all."""
        for request in requests:
            request.Start()


@complete
class Grequest(Request):
    """A generalized request; making one is not supported yet."""

    __slots__ = ()

    def __init__(self, request: Grequest | None = None) -> None:
        if request is not None and not isinstance(request, Grequest):
            raise TypeError(f"request: expecting Grequest, not {type(request).__name__}")


REQUEST_NULL = Request()
