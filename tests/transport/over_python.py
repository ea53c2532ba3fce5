"""Runs the conformance suite, as a library inside this process, over a transport in Python that reaches only itself.

    over_python.py PLUGIN_MODULE CONFORMANCE_LIBRARY LOOP_LIBRARY [the suite's arguments]

Each iface that a test opens is one more instance of the transport; for `mpi`, of an MPI_COMM_WORLD of one process.
"""

from __future__ import annotations

import ctypes
import importlib
import itertools
import sys
from collections.abc import Iterator
from typing import Any

OPEN = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
MOVE = ctypes.CFUNCTYPE(None, ctypes.c_int)
KEY = bytes(32)


def table_of(transport: Any) -> int:
    """Return the address of the table in the transport's capsule."""
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return int(pointer(transport.table(), b"pympx.transport.v1"))


def instance_of(transport: type[Any]) -> Any:
    """Return a subclass whose instances differ in their addresses: a process has one of a kind otherwise."""

    class Instance(transport):  # type: ignore[misc]
        def __init__(self, number: int) -> None:
            super().__init__()
            self._number = number.to_bytes(4, "little")

        def open(self, job_key: bytes) -> bytes:
            return bytes(super().open(job_key)) + self._number

        def send(self, peer: bytes, message: bytes) -> bool:
            return bool(super().send(peer[:-4], message))

        def poll(self) -> Iterator[tuple[bytes, Any]]:
            for peer, message in super().poll():
                yield peer + self._number, message

    return Instance


def main() -> int:
    """Return the suite's exit code."""
    module, suite, loop, *words = sys.argv[1:]
    numbers = itertools.count()
    make = instance_of(type(importlib.import_module(module).pympx_transport()))
    instances: dict[int, Any] = {}

    def open_one(device: int, capacity: int) -> int:
        number = next(numbers)
        transport = make(number)
        transport.prepare(KEY)
        text = transport.device().encode() + b"\0"
        if len(text) > capacity:
            return -1
        ctypes.memmove(device, text, len(text))
        instances[number] = transport
        return number

    def move_one(number: int) -> None:
        instances[number].pump().move()

    def close_one(number: int) -> None:
        instances.pop(number).pump().close()

    first = make(next(numbers))
    first.prepare(KEY)
    calls = OPEN(open_one), MOVE(move_one), MOVE(close_one)
    ctypes.CDLL(loop).use_python(*calls, ctypes.c_void_p(table_of(first)))
    arguments = [b"conformance", f"--transport={loop}".encode(), b"--loopback", *(word.encode() for word in words)]
    return int(ctypes.CDLL(suite).conformance_main(len(arguments), (ctypes.c_char_p * (len(arguments) + 1))(*arguments)))


if __name__ == "__main__":
    sys.exit(main())
