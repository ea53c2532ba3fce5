"""MPI.buffer and MPI.Alloc_mem: whoever looks at memory keeps it; bad input is an error with the numbers in it."""

from __future__ import annotations

import mmap
import weakref

import numpy as np
import pytest

from pympx import MPI


def test_released_memory_lives_as_long_as_somebody_looks_at_it() -> None:
    for memory in (MPI.Alloc_mem(1 << 20), MPI.buffer.allocate(1 << 20), MPI.buffer(bytearray(1 << 20))):
        array = np.frombuffer(memoryview(memory), np.uint8)
        array[:] = 7
        owner = weakref.ref(memory.obj) if isinstance(memory.obj, mmap.mmap) else None
        MPI.Free_mem(memory)
        assert (memory.address, memory.nbytes, bytes(memory)) == (0, 0, b"")
        assert (array == 7).all()
        memory.release()  # a second time does nothing
        assert (array == 7).all()
        del array
        assert owner is None or owner() is None  # unmapped at once


def test_memory_is_held_and_let_go() -> None:
    content = bytearray(b"abcdef")
    view = MPI.buffer(content)
    with pytest.raises(BufferError):
        content.append(0)
    part, fixed = view[1:3], view.toreadonly()
    assert (bytes(part), part.address - view.address, fixed.readonly, bytes(fixed)) == (b"bc", 1, True, b"abcdef")
    view.release()
    fixed.release()
    with pytest.raises(BufferError):
        content.append(0)  # the part still looks at it
    del part
    content.append(0)


def test_bad_input() -> None:
    view = MPI.buffer(bytearray(4))
    beyond = [(slice(None), 256, ValueError), (0, -1, ValueError), (slice(None, None, 2), 0, IndexError), (4, 0, IndexError)]
    for item, value, error in beyond:
        with pytest.raises(error):
            view[item] = value
    with pytest.raises(TypeError):
        view.toreadonly()[0] = 1
    with pytest.raises(ValueError, match="-1"):
        MPI.buffer.allocate(-1)
    with pytest.raises(ValueError, match="null"):
        MPI.buffer.fromaddress(0, 1)
    with pytest.raises(BufferError):
        MPI.buffer.frombuffer(b"read-only")
    assert bytes(view) == bytes(4)
