"""trio (and anyio on it): a system task on the engine's descriptor while somebody waits."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import trio

from . import keys, watch

_watcher: trio.lowlevel.RunVar[TrioWatcher] = trio.lowlevel.RunVar("pympx")


class TrioWatcher:
    """Of one run of trio."""

    def __init__(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._tasks = 0
        self._scope: trio.CancelScope | None = None

    def call(self, function: Callable[[], None]) -> None:
        try:
            if trio.lowlevel.current_trio_token() is self._token:
                return function()
        except RuntimeError:
            pass
        try:
            self._token.run_sync_soon(function)
        except trio.RunFinishedError:
            pass

    def wait(self, begin: keys.Begin) -> Generator[Any, Any, None]:
        woken = trio.Event()
        self._tasks += 1
        try:
            undo = begin(lambda: self.call(woken.set))
            if undo is None:
                return
            if self._scope is None:
                self._scope = trio.CancelScope()
                trio.lowlevel.spawn_system_task(self._serve, self._scope)
            try:
                yield from woken.wait().__await__()
            finally:
                undo()
        finally:
            self._tasks -= 1
            if self._tasks == 0 and self._scope is not None:
                self._scope.cancel()
                self._scope = None

    async def _serve(self, scope: trio.CancelScope) -> None:
        with scope:
            while True:
                ended, seconds = watch.turn()
                keys.report(ended)
                with trio.move_on_after(seconds):
                    await trio.lowlevel.wait_readable(watch.fileno())


def watcher() -> TrioWatcher:
    """Return the watcher of this run of trio."""
    try:
        return _watcher.get()
    except LookupError:
        made = TrioWatcher()
        _watcher.set(made)
        return made
