"""Which event loop runs, and what it does for those that wait in it.

A loop has a *watcher*: it suspends tasks, and calls turn() when the engine's descriptor is readable.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from typing import Any, Protocol

from ..bindings.request import Request
from . import keys, watch


class Watcher(Protocol):
    """What a kind of event loop implements."""

    def wait(self, begin: keys.Begin) -> Generator[Any, Any, None]:
        """Suspend the task until it is woken."""

    def call(self, function: Callable[[], None]) -> None:
        """Run `function` in the loop, from any thread."""


def current() -> Watcher:
    """Return the watcher of the running event loop. Raises RuntimeError outside of one."""
    trio = sys.modules.get("trio")
    if trio is not None:
        try:
            trio.lowlevel.current_task()
        except RuntimeError:
            pass
        else:
            from .trio_loop import watcher as trio_watcher

            return trio_watcher()
    from .asyncio_loop import watcher

    return watcher()


def until_done(operation: Any) -> Generator[Any, Any, None]:
    """Suspend the task until a Request is complete, or a Call has ended."""
    watcher = current()
    if not isinstance(operation, Request):

        def hear(wake: Callable[[], None]) -> Callable[[], None]:
            operation.add_done_callback(lambda _: wake())
            return lambda: None

        yield from watcher.wait(hear)
        return
    done = False
    while not done:  # an operation may have several parts, which end one after another

        def begin(wake: Callable[[], None]) -> Callable[[], None] | None:
            key = keys.new()
            keys.waiting[key] = wake
            if watch.watch(operation, key):
                return lambda: keys.waiting.pop(key, None) and None
            nonlocal done
            done = True
            del keys.waiting[key]
            return None

        yield from watcher.wait(begin)
