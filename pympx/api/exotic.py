"""Buffers of objects that lack the buffer protocol, or cannot export their items through it.

DLPack tensors in CPU memory; objects with ``__cuda_array_interface__`` whose memory the CPU can read (managed and host memory); NumPy
arrays of datetime64 and timedelta64. The owner that decode() returns holds the memory until the operation is complete.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Iterable
from typing import Any

Decoded = tuple[int, int, str | None, Any]

#: item codes that name a datatype; items of other kinds travel as bytes
_CODES = frozenset(("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "f16", "c8", "c16", "c32"))
# DLPack 1.0: device types whose memory is the host's, kinds of items, flag of read-only tensors.
_HOST_DEVICES = {1: "kDLCPU", 3: "kDLCUDAHost", 11: "kDLROCMHost"}
_KINDS = {0: "i", 1: "u", 2: "f", 5: "c", 6: "b"}
_READ_ONLY = 1


class _Device(ctypes.Structure):
    _fields_ = [("kind", ctypes.c_int32), ("number", ctypes.c_int32)]


class _Items(ctypes.Structure):
    _fields_ = [("kind", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("items", _Items),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class _Versioned(ctypes.Structure):
    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    ]


_is_capsule = ctypes.pythonapi.PyCapsule_IsValid
_is_capsule.argtypes, _is_capsule.restype = [ctypes.py_object, ctypes.c_char_p], ctypes.c_int
_pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_of.argtypes, _pointer_of.restype = [ctypes.py_object, ctypes.c_char_p], ctypes.c_void_p
_libc = ctypes.CDLL(None, use_errno=True)
_libc.write.argtypes, _libc.write.restype = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t], ctypes.c_ssize_t


def decode(obj: Any, writable: bool) -> Decoded:
    """Return (address, bytes, item code or None, what keeps the memory alive). Raises TypeError or BufferError."""
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(obj, numpy.ndarray):
        return _array(obj, writable)
    if hasattr(obj, "__dlpack__") and hasattr(obj, "__dlpack_device__"):
        return _dlpack(obj, writable)
    if hasattr(obj, "__cuda_array_interface__"):
        return _cuda_array(obj, writable)
    raise TypeError(
        f"message: expecting an object with the buffer protocol, DLPack or __cuda_array_interface__, or a list "
        f"[buffer, count, datatype]; got {type(obj).__name__}"
    )


def _array(array: Any, writable: bool) -> Decoded:
    if array.dtype.hasobject:
        raise TypeError(f"message: an array of Python objects ({array.dtype}) has no bytes to send; use the lower-case method")
    if not (array.flags.c_contiguous or array.flags.f_contiguous):
        raise BufferError(
            f"ndarray of shape {array.shape} with strides {array.strides} is not contiguous; "
            "pass a contiguous copy (numpy.ascontiguousarray)"
        )
    if writable and not array.flags.writeable:
        raise BufferError(f"ndarray of {array.nbytes} bytes is read-only; receiving needs a writable buffer")
    return array.ctypes.data, array.nbytes, "i8" if array.dtype.kind in "mM" and array.dtype.isnative else None, array


def _contiguous(shape: Iterable[int], strides: Iterable[int]) -> bool:
    """Return whether items with these strides (counted in items) fill one piece of memory in C or Fortran order."""
    axes = [(n, stride) for n, stride in zip(shape, strides, strict=True) if n != 1]
    if any(n == 0 for n, _ in axes):
        return True
    for order in (axes, axes[::-1]):
        expected = 1
        for n, stride in order:
            if stride != expected:
                break
            expected *= n
        else:
            return True
    return False


def _product(shape: Iterable[int]) -> int:
    total = 1
    for n in shape:
        total *= n
    return total


def _dlpack(obj: Any, writable: bool) -> Decoded:
    device, number = obj.__dlpack_device__()
    if int(device) not in _HOST_DEVICES:
        name = type(obj).__name__
        raise TypeError(f"message: device buffer: {name} is on DLPack device {int(device)}:{number}; copy it to the host first")
    try:
        capsule = obj.__dlpack__(max_version=(1, 0))
    except TypeError:  # a producer from before DLPack 1.0
        capsule = obj.__dlpack__()
    # The capsule is held and never consumed: its own destructor gives the tensor back.
    if _is_capsule(capsule, b"dltensor_versioned"):
        managed = _Versioned.from_address(_pointer_of(capsule, b"dltensor_versioned"))
        if managed.major != 1:
            raise BufferError(f"message: {type(obj).__name__} speaks DLPack {managed.major}.{managed.minor}; version 1 is understood")
        if writable and managed.flags & _READ_ONLY:
            raise BufferError(f"message: the DLPack tensor of {type(obj).__name__} is read-only; receiving needs a writable buffer")
        tensor = managed.tensor
    elif _is_capsule(capsule, b"dltensor"):
        tensor = _Tensor.from_address(_pointer_of(capsule, b"dltensor"))
    else:
        raise BufferError(f"message: __dlpack__ of {type(obj).__name__} returned no DLPack capsule")
    shape = tensor.shape[: tensor.ndim] if tensor.ndim else []
    if tensor.strides and tensor.ndim and not _contiguous(shape, tensor.strides[: tensor.ndim]):
        name = type(obj).__name__
        raise BufferError(f"message: the DLPack tensor of {name}, shape {tuple(shape)}, is not contiguous; pass a contiguous copy")
    kind, lanes = _KINDS.get(tensor.items.kind, ""), tensor.items.lanes
    bits = tensor.items.bits * lanes
    if bits % 8:
        raise BufferError(f"message: items of {bits} bits are no whole bytes")
    if kind == "f" and lanes == 2:  # complex numbers of 256 bits, which do not fit the field
        kind, lanes = "c", 1
    code = f"{kind}{bits // 8}"
    known = code in _CODES and lanes == 1
    return (tensor.data or 0) + tensor.byte_offset, _product(shape) * bits // 8, code if known else None, capsule


def _cuda_array(obj: Any, writable: bool) -> Decoded:
    interface = obj.__cuda_array_interface__
    address, read_only = interface["data"]
    shape, typestr = interface["shape"], interface["typestr"]
    if interface.get("mask") is not None:
        raise BufferError(f"message: {type(obj).__name__} has a mask; masked arrays cannot be sent")
    if writable and read_only:
        raise BufferError(f"message: {type(obj).__name__} is read-only; receiving needs a writable buffer")
    itemsize = int(typestr[2:])
    strides = interface.get("strides")
    if strides is not None and not _contiguous(shape, [stride / itemsize for stride in strides]):
        raise BufferError(f"message: {type(obj).__name__} of shape {tuple(shape)} with strides {tuple(strides)} is not contiguous")
    nbytes = _product(shape) * itemsize
    if nbytes and not (_readable(address) and _readable(address + nbytes - 1)):
        name = type(obj).__name__
        raise TypeError(f"message: device buffer: the CPU cannot read the memory of {name} at {address:#x}; copy it to the host first")
    native = typestr[0] in ("|", "<" if sys.byteorder == "little" else ">")
    code = typestr[1:]
    return address, nbytes, code if native and code in _CODES else None, obj


def _readable(address: int) -> bool:
    """Return whether this process can read the byte at `address`: the kernel looks, so that nothing can crash."""
    out, into = os.pipe()
    try:
        if _libc.write(into, address, 1) == 1:
            return True
        if ctypes.get_errno() != errno.EFAULT:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return False
    finally:
        os.close(out)
        os.close(into)
