"""Predefined datatypes (MPI 4.1, table 3.2 and section 6.9.4)."""

from __future__ import annotations

import struct

from ..bindings import datatype as _datatype
from ..bindings.datatype import Datatype as _Datatype

# Numbers of mpx::ElementType in engine/reduce.h.
(_I8, _I16, _I32, _I64, _U8, _U16, _U32, _U64, _F, _D, _G, _CF, _CD, _CG, _BOOL, _BYTE, _FI, _DI, _LI, _II, _SI, _GI, _NONE) = range(23)
_SIGNED = {1: _I8, 2: _I16, 4: _I32, 8: _I64}
_UNSIGNED = {1: _U8, 2: _U16, 4: _U32, 8: _U64}


class Datatype(_Datatype):
    """An MPI datatype. The predefined ones are module attributes: DOUBLE, INT, ..."""

    __slots__ = ()

    def Get_size(self) -> int:
        """Return the number of bytes of one element."""
        return self.size

    def Get_extent(self) -> tuple[int, int]:
        """Return (lower bound, extent) in bytes."""
        return 0, self.size

    def Get_name(self) -> str:
        """Return the name."""
        return self.name

    def Commit(self) -> Datatype:
        """Do nothing: predefined datatypes are ready for use."""
        return self

    @property
    def extent(self) -> int:
        """Bytes from one element to the next."""
        return self.size

    @property
    def lb(self) -> int:
        """Lower bound in bytes."""
        return 0

    @property
    def ub(self) -> int:
        """Upper bound in bytes."""
        return self.size

    @property
    def is_predefined(self) -> bool:
        """Whether this is one of MPI's own datatypes."""
        return True

    @property
    def is_named(self) -> bool:
        """Whether this is one of MPI's own datatypes."""
        return True

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return _by_name, (self.name,)

    def __repr__(self) -> str:
        return self.name


PREDEFINED: dict[str, Datatype] = {}


def _by_name(name: str) -> Datatype:
    return DATATYPE_NULL if name == "MPI_DATATYPE_NULL" else PREDEFINED[name.removeprefix("MPI_")]


def _define(name: str, size: int, typechar: str, element: int) -> Datatype:
    datatype: Datatype = Datatype()._define(f"MPI_{name}", size, typechar, len(PREDEFINED) + 1, element)
    PREDEFINED[name] = datatype
    _datatype.register_code(f"MPI_{name}", datatype)
    return datatype


def _integer(name: str, size: int, signed: bool, typechar: str = "") -> None:
    _define(name, size, typechar, (_SIGNED if signed else _UNSIGNED)[size])


def _define_all() -> None:
    size = struct.calcsize
    _define("BYTE", 1, "B", _BYTE)
    _define("PACKED", 1, "", _NONE)
    _define("CHAR", 1, "c", _NONE)
    _define("WCHAR", 4, "", _NONE)
    for name, char in {"SIGNED_CHAR": "b", "SHORT": "h", "INT": "i", "LONG": "l", "LONG_LONG": "q"}.items():
        _integer(name, size(char), True, char)
    for name, char in {"_CHAR": "B", "_SHORT": "H", "": "I", "_LONG": "L", "_LONG_LONG": "Q"}.items():
        _integer("UNSIGNED" + name, size(char), False, char)
    for bits in (8, 16, 32, 64):
        _integer(f"INT{bits}_T", bits // 8, True, "bhiq"[(8, 16, 32, 64).index(bits)])
        _integer(f"UINT{bits}_T", bits // 8, False, "BHIQ"[(8, 16, 32, 64).index(bits)])
        _integer(f"INTEGER{bits // 8}", bits // 8, True, "bhiq"[(8, 16, 32, 64).index(bits)])
    for name in ("AINT", "OFFSET", "COUNT"):
        _integer(name, 8, True, "q")
    _define("FLOAT", 4, "f", _F)
    _define("DOUBLE", 8, "d", _D)
    _define("LONG_DOUBLE", 16, "g", _G)
    _define("C_BOOL", 1, "?", _BOOL)
    _define("CXX_BOOL", 1, "?", _BOOL)
    for prefix in ("C_", "CXX_"):
        _define(f"{prefix}FLOAT_COMPLEX", 8, "F", _CF)
        _define(f"{prefix}DOUBLE_COMPLEX", 16, "D", _CD)
        _define(f"{prefix}LONG_DOUBLE_COMPLEX", 32, "G", _CG)
    # Fortran's, as gfortran lays them out
    _define("CHARACTER", 1, "", _NONE)
    _define("LOGICAL", 4, "", _I32)
    _define("INTEGER", 4, "i", _I32)
    _define("REAL", 4, "f", _F)
    _define("DOUBLE_PRECISION", 8, "d", _D)
    _define("COMPLEX", 8, "F", _CF)
    _define("DOUBLE_COMPLEX", 16, "D", _CD)
    for bytes_, element, char in ((4, _F, "f"), (8, _D, "d"), (16, _G, "g")):
        _define(f"REAL{bytes_}", bytes_, char, element)
    for bytes_, element, char in ((8, _CF, "F"), (16, _CD, "D"), (32, _CG, "G")):
        _define(f"COMPLEX{bytes_}", bytes_, char, element)
    for bytes_, char in ((1, "b"), (2, "h"), (4, "i"), (8, "q")):
        _integer(f"LOGICAL{bytes_}", bytes_, True, char)
    _define("FLOAT_INT", 8, "", _FI)
    _define("DOUBLE_INT", 16, "", _DI)
    _define("LONG_INT", 16, "", _LI)
    _define("TWOINT", 8, "", _II)
    _define("SHORT_INT", 8, "", _SI)
    _define("LONG_DOUBLE_INT", 32, "", _GI)
    for alias, name in ALIASES.items():
        PREDEFINED[alias] = PREDEFINED[name]
        _datatype.register_code(f"MPI_{alias}", PREDEFINED[name])
    # what buffers call their items, and what users may write for a datatype
    for char, name in {
        "b": "SIGNED_CHAR", "B": "UNSIGNED_CHAR", "h": "SHORT", "H": "UNSIGNED_SHORT", "i": "INT", "I": "UNSIGNED", "l": "LONG",
        "L": "UNSIGNED_LONG", "q": "LONG_LONG", "Q": "UNSIGNED_LONG_LONG", "n": "AINT", "f": "FLOAT", "d": "DOUBLE", "g": "LONG_DOUBLE",
        "?": "C_BOOL", "c": "CHAR", "Zf": "C_FLOAT_COMPLEX", "Zd": "C_DOUBLE_COMPLEX", "Zg": "C_LONG_DOUBLE_COMPLEX",
    }.items():  # fmt: skip
        _datatype.register_character(char, PREDEFINED[name])
        _datatype.register_code(char, PREDEFINED[name])
    for code, name in {
        "F": "C_FLOAT_COMPLEX", "D": "C_DOUBLE_COMPLEX", "G": "C_LONG_DOUBLE_COMPLEX", "p": "AINT", "P": "AINT",
        "i1": "INT8_T", "i2": "INT16_T", "i4": "INT32_T", "i8": "INT64_T", "u1": "UINT8_T", "u2": "UINT16_T", "u4": "UINT32_T",
        "u8": "UINT64_T", "f4": "FLOAT", "f8": "DOUBLE", "f16": "LONG_DOUBLE", "c8": "C_FLOAT_COMPLEX", "c16": "C_DOUBLE_COMPLEX",
        "c32": "C_LONG_DOUBLE_COMPLEX", "b1": "C_BOOL", "S1": "CHAR", "V1": "BYTE",
    }.items():  # fmt: skip
        _datatype.register_code(code, PREDEFINED[name])


ALIASES = {
    "UNSIGNED_INT": "UNSIGNED",
    "LONG_LONG_INT": "LONG_LONG",
    "INT_INT": "TWOINT",
    "BOOL": "C_BOOL",
    "C_COMPLEX": "C_FLOAT_COMPLEX",
    "SINT8_T": "INT8_T",
    "SINT16_T": "INT16_T",
    "SINT32_T": "INT32_T",
    "SINT64_T": "INT64_T",
    "F_BOOL": "LOGICAL",
    "F_INT": "INTEGER",
    "F_FLOAT": "REAL",
    "F_DOUBLE": "DOUBLE_PRECISION",
    "F_COMPLEX": "COMPLEX",
    "F_FLOAT_COMPLEX": "COMPLEX",
    "F_DOUBLE_COMPLEX": "DOUBLE_COMPLEX",
}
DATATYPE_NULL = Datatype()
_define_all()
