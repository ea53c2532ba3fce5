"""What the fuzz targets in Python share: reading an input, the start of atheris, a bound on memory.

A target is a program: ``python tests/fuzz/NAME.py [libFuzzer's options] [CORPUS]``. It imports what it tests inside ``instrumented()``, so
that atheris sees its branches, and ends with ``run(one_input)``. An exception that leaves ``one_input`` is a finding.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager

import atheris  # type: ignore[import-untyped]

#: bytes that a target may allocate beside what the interpreter and libFuzzer have at its start; more is a MemoryError, hence a finding
MEMORY = 192 << 20


class Input:
    """One input, read from the front; zeros and nothing when it is used up."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def take(self, count: int) -> bytes:
        piece = self._data[self._at : self._at + count]
        self._at += len(piece)
        return piece

    def number(self, size: int = 1) -> int:
        return int.from_bytes(self.take(size), "little")

    def some(self, limit: int) -> bytes:
        """A length in front, `limit` at most."""
        return self.take(self.number(2) % (limit + 1))

    def spoil(self, data: bytes) -> bytes:
        """Return `data` with up to three bytes changed."""
        changed = bytearray(data)
        for _ in range(self.number() % 4):
            if changed:
                changed[self.number(2) % len(changed)] = self.number()
        return bytes(changed)


def instrumented(*modules: str) -> AbstractContextManager[None]:
    """While this lasts, imports of `modules` are instrumented for coverage."""
    manager: AbstractContextManager[None] = atheris.instrument_imports(include=list(modules))
    return manager


def run(one_input: Callable[[Input], None]) -> None:
    """Fuzz, or replay, as the command line says; does not return."""
    with open("/proc/self/statm") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, resource.RLIM_INFINITY))
    shaped = atheris.instrument_func(one_input)  # the harness's own branches count too: of compiled modules there are no others
    own_name = os.environ.get("PYMPX_TEST_FUZZER", sys.argv[0])  # what libFuzzer starts anew to merge: a program
    atheris.Setup([own_name, *sys.argv[1:]], lambda data: shaped(Input(data)))
    atheris.Fuzz()
