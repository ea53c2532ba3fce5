"""asyncio (and what runs on it: anyio, uvloop): a reader on the engine's descriptor, until it is called when nobody waits any more."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Generator
from typing import Any
from weakref import WeakKeyDictionary

from . import keys, watch

_watchers: WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncioWatcher] = WeakKeyDictionary()


class AsyncioWatcher:
    """Of one loop: how many tasks wait, and the reader and the timer that serve them."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._thread = threading.get_ident()
        self._tasks = 0
        self._reads = False
        self._timer: asyncio.TimerHandle | None = None

    def call(self, function: Callable[[], None]) -> None:
        if threading.get_ident() == self._thread:
            function()
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function)

    def wait(self, begin: keys.Begin) -> Generator[Any, Any, None]:
        future = self._loop.create_future()

        def wake() -> None:
            if not future.done():
                future.set_result(None)

        self._tasks += 1
        try:
            undo = begin(lambda: self.call(wake))
            if undo is None:
                return
            if not self._reads:
                self._reads = True
                self._loop.add_reader(watch.fileno(), self._turn)
                self._turn()  # arms the transports; later every turn does
            try:
                yield from future
            finally:
                undo()
        finally:
            self._tasks -= 1

    def _turn(self) -> None:
        if self._tasks == 0:
            self._reads = False
            self._loop.remove_reader(watch.fileno())
            return
        ended, seconds = watch.turn()
        keys.report(ended)
        due = self._loop.time() + seconds
        if self._timer is None or self._timer.when() > due:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(due, self._tick)

    def _tick(self) -> None:
        self._timer = None
        if self._reads:
            self._turn()


def watcher() -> AsyncioWatcher:
    """Return the running loop's watcher. Raises RuntimeError when no loop runs."""
    loop = asyncio.get_running_loop()
    found = _watchers.get(loop)
    if found is None:
        found = _watchers[loop] = AsyncioWatcher(loop)
    return found
