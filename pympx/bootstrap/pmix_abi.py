"""The few types, constants and functions of PMIx's C interface that pmix.py uses, for ctypes; the same from PMIx 3 to 5."""

from __future__ import annotations

import ctypes

#: lengths of names, without their NUL
_NAMESPACE, _KEY = 255, 511

#: ``pmix_data_type_t``
BOOL, UINT32, BYTE_OBJECT = 1, 14, 27
#: ``pmix_scope_t``: for all ranks, on this host and others
GLOBAL = 3
#: ``pmix_rank_t``: the job as a whole
RANK_WILDCARD = 0xFFFFFFFE


class Proc(ctypes.Structure):
    """``pmix_proc_t``"""

    _fields_ = (("nspace", ctypes.c_char * (_NAMESPACE + 1)), ("rank", ctypes.c_uint32))


class ByteObject(ctypes.Structure):
    """``pmix_byte_object_t``"""

    _fields_ = (("bytes", ctypes.c_void_p), ("size", ctypes.c_size_t))


class Data(ctypes.Union):
    """The union in ``pmix_value_t``, whose largest members (an envar: two pointers and a char; a coordinate) take 24 bytes."""

    _fields_ = (("flag", ctypes.c_bool), ("uint32", ctypes.c_uint32), ("bytes", ByteObject), ("room", ctypes.c_char * 24))


class Value(ctypes.Structure):
    """``pmix_value_t``"""

    _fields_ = (("type", ctypes.c_uint16), ("data", Data))


class Info(ctypes.Structure):
    """``pmix_info_t``"""

    _fields_ = (("key", ctypes.c_char * (_KEY + 1)), ("flags", ctypes.c_uint32), ("value", Value))


_free = ctypes.CDLL(None).free
_free.argtypes = [ctypes.c_void_p]
_free.restype = None


def free(memory: ctypes._Pointer[Value] | int | None) -> None:
    """Give back what PMIx_Get allocated. Releasing a value is plain free() in every version; a function for it came only with 4.2."""
    _free(ctypes.cast(memory, ctypes.c_void_p) if isinstance(memory, ctypes._Pointer) else memory)


def declare(library: ctypes.CDLL) -> ctypes.CDLL:
    """Give the functions their types; return the library. Raises AttributeError when one is missing."""
    status, pointer, size = ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t
    for name, result, arguments in (
        ("PMIx_Init", status, (pointer, pointer, size)),
        ("PMIx_Finalize", status, (pointer, size)),
        ("PMIx_Put", status, (ctypes.c_uint8, ctypes.c_char_p, pointer)),
        ("PMIx_Commit", status, ()),
        ("PMIx_Fence", status, (pointer, size, pointer, size)),
        ("PMIx_Get", status, (pointer, ctypes.c_char_p, pointer, size, pointer)),
        ("PMIx_Abort", status, (ctypes.c_int, ctypes.c_char_p, pointer, size)),
        ("PMIx_Error_string", ctypes.c_char_p, (ctypes.c_int,)),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, list(arguments)
    return library
