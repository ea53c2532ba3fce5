"""Buffers without the buffer protocol, and all of NumPy's kinds of items, through Send and Recv."""

from __future__ import annotations

import array
import ctypes
import gc
import mmap
import weakref
from typing import Any

import numpy as np
import pytest

from pympx import MPI
from pympx.api import exotic

ME = MPI.COMM_SELF
KINDS = [
    *"?bhilqBHILQefdgFDG",
    "S5",
    "U3",
    "V7",
    "M8[ns]",
    "m8[s]",
    ">i4",
    ">f8",
    ">M8[us]",
    np.dtype([("a", "i4"), ("Object", "f8")]),
    np.dtype([("a", "i2"), ("b", "f8", (2, 2))], align=True),
]


def exchange(out: Any, into: Any) -> MPI.Status:
    status = MPI.Status()
    request = ME.Isend(out, 0, 5)
    ME.Recv(into, 0, 5, status)
    request.Wait()
    return status


def filled(kind: Any, n: int) -> np.ndarray[Any, Any]:
    dtype = np.dtype(kind)
    if dtype == np.bool_:
        odd: np.ndarray[Any, Any] = np.arange(n) % 2 == 0
        return odd
    raw = np.arange(n * dtype.itemsize, dtype="u1")
    items: np.ndarray[Any, Any] = raw.view(dtype)
    return items


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("n", [0, 1, 17])
def test_every_kind_of_item(kind: Any, n: int) -> None:
    out = filled(kind, n)
    into = np.zeros(n, kind)
    status = exchange(out, into)
    assert into.tobytes() == out.tobytes()
    assert status.Get_count(MPI.BYTE) == out.nbytes


def test_datetimes_reduce_as_integers() -> None:
    out = np.array(["2020-01-01", "2021-06-01"], "M8[s]")
    into = np.zeros(2, "M8[s]")
    ME.Allreduce(out, into, MPI.MAX)
    assert (into == out).all()


@pytest.mark.parametrize("kind", ["O", [("a", "i4"), ("b", "O")]])
def test_objects_have_no_bytes(kind: Any) -> None:
    with pytest.raises(TypeError, match="Python objects"):
        ME.Isend(np.zeros(2, kind), 0)


def test_datetimes_that_cannot_be_used() -> None:
    times = np.zeros(8, "M8[s]")
    with pytest.raises(BufferError, match="contiguous"):
        ME.Isend(times[::2], 0)
    times.flags.writeable = False
    with pytest.raises(BufferError, match="read-only"):
        ME.Irecv(times, 0)


class Tensor:
    """An object with DLPack only."""

    def __init__(self, content: np.ndarray[Any, Any]) -> None:
        self.content = content

    def __dlpack_device__(self) -> Any:
        return self.content.__dlpack_device__()

    def __dlpack__(self, **options: Any) -> Any:
        return self.content.__dlpack__(**options)


class OldTensor(Tensor):
    """From before DLPack 1.0: no max_version."""

    def __dlpack__(self, stream: None = None) -> Any:  # type: ignore[override]
        return self.content.__dlpack__()


@pytest.mark.parametrize("cls", [Tensor, OldTensor])
@pytest.mark.parametrize("kind", "?bhilBHILfdFDe")
def test_dlpack(cls: type[Tensor], kind: str) -> None:
    out = filled(kind, 12)
    into = np.zeros((3, 4), kind)
    exchange(cls(out), cls(into))
    assert into.tobytes() == out.tobytes()


def test_dlpack_items_have_their_datatype() -> None:
    into = np.zeros(3)
    ME.Allreduce(Tensor(np.array([1.5, 2, 3])), Tensor(into))
    assert into.tolist() == [1.5, 2, 3]


def test_dlpack_complex_of_256_bits() -> None:
    """Its items are two lanes of 128 bits: more do not fit DLPack's field."""

    class Wide(OldTensor):
        def __dlpack__(self, stream: None = None) -> Any:  # type: ignore[override]
            capsule = self.content.view("f8").__dlpack__()
            tensor = exotic._Tensor.from_address(exotic._pointer_of(capsule, b"dltensor"))
            tensor.items.bits, tensor.items.lanes, tensor.shape[0] = 128, 2, len(self.content)
            return capsule

    content = np.array([1 + 2j, 3 - 1j], "G")
    into = np.zeros(2, "G")
    ME.Allreduce(Wide(content), Wide(into))
    assert into.tolist() == content.tolist()
    into[:] = 0
    ME.Allgatherv([Wide(content), 2], [Wide(into), 2])
    assert into.tolist() == content.tolist()


def test_dlpack_that_python_gives_back() -> None:
    """Python code that runs when a failing call lets go of a buffer leaves the error as it is."""
    given_back: list[int] = []

    class Attended(OldTensor):
        def __dlpack__(self, stream: None = None) -> Any:  # type: ignore[override]
            capsule = self.content.__dlpack__()
            set_destructor(capsule, note)
            return capsule

    note = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(given_back.append)
    set_destructor = ctypes.pythonapi.PyCapsule_SetDestructor
    set_destructor.argtypes = [ctypes.py_object, type(note)]
    with pytest.raises(MPI.Exception) as caught:
        ME.Gatherv(Attended(np.zeros(3)), Attended(np.zeros(2)))
    assert caught.value.Get_error_class() == MPI.ERR_COUNT
    assert len(given_back) == 2


def test_dlpack_lives_as_long_as_the_operation() -> None:
    content = np.full(1 << 18, 7, "i4")
    gone = weakref.ref(content)
    request = ME.Issend(Tensor(content), 0)
    del content
    gc.collect()
    assert gone() is not None
    into = np.zeros(1 << 18, "i4")
    ME.Recv(into, 0)
    request.Wait()
    del request
    gc.collect()
    assert gone() is None
    assert (into == 7).all()


def test_dlpack_that_cannot_be_used() -> None:
    content = np.zeros((4, 4))
    with pytest.raises(BufferError, match="contiguous"):
        ME.Isend(Tensor(content[:, ::2]), 0)
    exchange(Tensor(content.T), content.copy())

    class Device(Tensor):
        def __dlpack_device__(self) -> Any:
            return 2, 1

    with pytest.raises(TypeError, match="device buffer.*2:1"):
        ME.Isend(Device(content), 0)


def test_dlpack_read_only() -> None:
    content = np.arange(4)
    content.flags.writeable = False
    try:
        content.__dlpack__(max_version=(1, 0))
    except (BufferError, TypeError):
        pytest.skip("this NumPy exports no read-only tensors")
    into = np.zeros(4, content.dtype)
    exchange(Tensor(content), into)
    assert (into == content).all()
    with pytest.raises(BufferError, match="read-only"):
        ME.Irecv(Tensor(content), 0)


class CudaArray:
    """An object with __cuda_array_interface__ only."""

    def __init__(self, address: int, shape: tuple[int, ...], typestr: str, read_only: bool = False, **more: Any) -> None:
        self.__cuda_array_interface__ = {"version": 3, "data": (address, read_only), "shape": shape, "typestr": typestr, **more}


def test_cuda_array_that_the_cpu_can_read() -> None:
    out, into = array.array("d", [1, 2, 3]), array.array("d", bytes(24))
    exchange(CudaArray(out.buffer_info()[0], (3,), "<f8"), CudaArray(into.buffer_info()[0], (3,), "<f8", strides=(8,)))
    assert into == out
    ME.Allreduce(CudaArray(out.buffer_info()[0], (3,), "<f8"), into)
    assert into == out


def test_cuda_array_on_a_device() -> None:
    hole = mmap.mmap(-1, 1 << 20)
    content = np.frombuffer(hole, "u1")
    address = content.ctypes.data
    del content
    hole.close()
    with pytest.raises(TypeError, match="device buffer.*cannot read"):
        ME.Isend(CudaArray(address, (1 << 20,), "|u1"), 0)
    with pytest.raises(TypeError, match="device buffer.*cannot read"):
        ME.Irecv(CudaArray(16, (1,), "|u1"), 0)
    exchange(CudaArray(16, (0,), "|u1"), bytearray())


def test_cuda_array_that_cannot_be_used() -> None:
    content = np.zeros(8)
    address = content.ctypes.data
    with pytest.raises(BufferError, match="read-only"):
        ME.Irecv(CudaArray(address, (8,), "<f8", read_only=True), 0)
    with pytest.raises(BufferError, match="contiguous"):
        ME.Isend(CudaArray(address, (4,), "<f8", strides=(16,)), 0)
    with pytest.raises(BufferError, match="mask"):
        ME.Isend(CudaArray(address, (8,), "<f8", mask=content), 0)


def test_no_buffer_at_all() -> None:
    with pytest.raises(TypeError, match="expecting an object with the buffer protocol.*got object"):
        ME.Isend(object(), 0)
