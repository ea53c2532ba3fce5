"""Which event loop runs, and what it does for those that wait in it.

A loop has a *watcher*: it knows who waits for which key, and calls turn() when the engine's descriptor is readable. Keys are reported to
whichever loop's turn finds them, so that one dictionary serves all loops (one per thread, at most).
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Generator
from typing import Any, Protocol

from ..bindings.request import Request
from . import watch

#: is told whom to wake, from any thread, and returns what undoes that; None: there is nothing to wait for
Begin = Callable[[Callable[[], None]], Callable[[], None] | None]


class Watcher(Protocol):
    """What a kind of event loop implements."""

    def wait(self, begin: Begin) -> Generator[Any, Any, None]:
        """Suspend the task until it is woken."""

    def call(self, function: Callable[[], None]) -> None:
        """Run `function` in the loop, from any thread."""


#: by key: what to do when its request has ended, from any thread
waiting: dict[int, Callable[[], None]] = {}
_keys = itertools.count(2, 2)  # odd ones are calls' (rpc/calls.pyx)


def report(ended: list[int]) -> None:
    """Wake those who wait for keys that turn() returned."""
    for key in ended:
        wake = waiting.pop(key, None)
        if wake is not None:
            wake()


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
            key = next(_keys)
            waiting[key] = wake
            if watch.watch(operation, key):
                return lambda: waiting.pop(key, None) and None
            nonlocal done
            done = True
            del waiting[key]
            return None

        yield from watcher.wait(begin)
