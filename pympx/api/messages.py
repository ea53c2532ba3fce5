"""Messages as an asynchronous iterator."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator
from typing import TYPE_CHECKING, Any

from ..aio.loops import until_done

if TYPE_CHECKING:
    from .comm import Comm
    from .request import Request
    from .status import Status


class Messages(AsyncIterator[Any]):
    """The objects that come from `source` with `tag`, one after another, as Comm.recv would return them. Made by Comm.messages().

    A wait that is cancelled loses no message: the receive stays posted for the next one. It is withdrawn with the iterator.
    """

    def __init__(self, comm: Comm, source: int, tag: int, status: Status | None) -> None:
        self._comm, self._source, self._tag, self._status = comm, source, tag, status
        self._posted: Request | None = None
        self._waits = False

    async def __anext__(self) -> Any:
        """Return the next message. Raises RuntimeError when another task waits for it, MPI.Exception what recv would."""
        if self._waits:
            raise RuntimeError("messages: another task waits for the next message of this iterator")
        self._waits = True
        try:
            if self._posted is None:
                self._posted = self._comm.irecv(None, self._source, self._tag)
            request = self._posted
            if not request.Get_status():
                await _Until(request)
            self._posted = None
            return request.wait(self._status)
        finally:
            self._waits = False


class _Until:
    """Awaitable: until a request is complete."""

    def __init__(self, request: Request) -> None:
        self._request = request

    def __await__(self) -> Generator[Any, Any, None]:
        return until_done(self._request)
