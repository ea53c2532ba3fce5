"""Predefined datatypes (MPI 4.1, table 3.2 and section 6.9.4)."""

from __future__ import annotations

import struct
from typing import Any

from ..bindings import datatype as _datatype
from ..bindings.datatype import Datatype as _Datatype
from .errors import UnsupportedError
from .handles import Handled, Table
from .unsupported import complete

# Numbers of mpx::ElementType in engine/reduce.h.
(_I8, _I16, _I32, _I64, _U8, _U16, _U32, _U64, _F, _D, _G, _CF, _CD, _CG, _BOOL, _BYTE, _FI, _DI, _LI, _II, _SI, _GI, _NONE) = range(23)
_SIGNED = {1: _I8, 2: _I16, 4: _I32, 8: _I64}
_UNSIGNED = {1: _U8, 2: _U16, 4: _U32, 8: _U64}


@complete
class Datatype(_Datatype, Handled):
    """An MPI datatype. The predefined ones are module attributes: DOUBLE, INT, ..."""

    __slots__ = ()
    _table: Table[Any] = Table(0x0C000000)

    def Get_size(self) -> int:
        """Return the number of bytes of one element."""
        return self.size

    def Get_extent(self) -> tuple[int, int]:
        """Return (lower bound, extent) in bytes."""
        return 0, self.size

    def Get_name(self) -> str:
        """Return the name."""
        return self.name

    def Get_true_extent(self) -> tuple[int, int]:
        """Return (true lower bound, true extent) in bytes."""
        return 0, self.size

    def Free(self) -> None:
        """Raise UnsupportedError: predefined datatypes cannot be freed, others cannot be made."""
        raise UnsupportedError("MPI.Datatype.Free of a predefined datatype")

    def free(self) -> None:
        """Do nothing: predefined datatypes cannot be freed."""

    def tocode(self) -> str:
        """Return the character or string that names this datatype in a buffer argument."""
        if not self.typechar:
            raise ValueError(f"{self.name} has no code")
        return self.typechar

    @classmethod
    def fromcode(cls, code: str) -> Datatype:
        """Return the datatype of a code: "d", "f8". Raises KeyError for an unknown one."""
        return _named(code)

    @property
    def typestr(self) -> str:
        """NumPy's string for it, "" if there is none: "f8"."""
        return {"?": "b", "f": "f", "d": "f", "g": "f", "F": "c", "D": "c", "G": "c", "c": "S"}.get(
            self.typechar, "u" if self.typechar in "BHILQ" else "i"
        ) + str(self.size) if self.typechar else ""

    @property
    def true_extent(self) -> int:
        """Bytes that one element occupies."""
        return self.size

    @property
    def true_lb(self) -> int:
        """Lower bound in bytes."""
        return 0

    @property
    def true_ub(self) -> int:
        """Upper bound in bytes."""
        return self.size

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


def _named(code: str) -> Datatype:
    found = _datatype.lookup(code)
    assert isinstance(found, Datatype)
    return found


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
    # no reductions on half floats yet
    _define("FLOAT16_T", 2, "e", _NONE)
    _define("BFLOAT16_T", 2, "", _NONE)
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
    _define("COMPLEX4", 4, "", _NONE)
    _define("INTEGER16", 16, "", _NONE)
    _define("LOGICAL16", 16, "", _NONE)
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
        "?": "C_BOOL", "c": "CHAR", "e": "FLOAT16_T", "Zf": "C_FLOAT_COMPLEX", "Zd": "C_DOUBLE_COMPLEX", "Zg": "C_LONG_DOUBLE_COMPLEX",
    }.items():  # fmt: skip
        _datatype.register_character(char, PREDEFINED[name])
        _datatype.register_code(char, PREDEFINED[name])
    for code, name in {
        "F": "C_FLOAT_COMPLEX", "D": "C_DOUBLE_COMPLEX", "G": "C_LONG_DOUBLE_COMPLEX", "p": "AINT", "P": "AINT",
        "i1": "INT8_T", "i2": "INT16_T", "i4": "INT32_T", "i8": "INT64_T", "u1": "UINT8_T", "u2": "UINT16_T", "u4": "UINT32_T",
        "u8": "UINT64_T", "f2": "FLOAT16_T",
        "f4": "FLOAT", "f8": "DOUBLE", "f16": "LONG_DOUBLE", "c8": "C_FLOAT_COMPLEX", "c16": "C_DOUBLE_COMPLEX",
        "c32": "C_LONG_DOUBLE_COMPLEX", "b1": "C_BOOL", "S1": "CHAR", "V1": "BYTE",
    }.items():  # fmt: skip
        _datatype.register_code(code, PREDEFINED[name])


ALIASES = {
    "UNSIGNED_INT": "UNSIGNED",
    "LONG_LONG_INT": "LONG_LONG",
    "INT_INT": "TWOINT",
    "SIGNED_SHORT": "SHORT",
    "SIGNED_INT": "INT",
    "SIGNED_LONG": "LONG",
    "SIGNED_LONG_LONG": "LONG_LONG",
    "FLOAT32_T": "FLOAT",
    "FLOAT64_T": "DOUBLE",
    "REAL2": "FLOAT16_T",
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

AINT = PREDEFINED["AINT"]
BFLOAT16_T = PREDEFINED["BFLOAT16_T"]
BOOL = PREDEFINED["BOOL"]
BYTE = PREDEFINED["BYTE"]
CHAR = PREDEFINED["CHAR"]
CHARACTER = PREDEFINED["CHARACTER"]
COMPLEX = PREDEFINED["COMPLEX"]
COMPLEX16 = PREDEFINED["COMPLEX16"]
COMPLEX32 = PREDEFINED["COMPLEX32"]
COMPLEX4 = PREDEFINED["COMPLEX4"]
COMPLEX8 = PREDEFINED["COMPLEX8"]
COUNT = PREDEFINED["COUNT"]
CXX_BOOL = PREDEFINED["CXX_BOOL"]
CXX_DOUBLE_COMPLEX = PREDEFINED["CXX_DOUBLE_COMPLEX"]
CXX_FLOAT_COMPLEX = PREDEFINED["CXX_FLOAT_COMPLEX"]
CXX_LONG_DOUBLE_COMPLEX = PREDEFINED["CXX_LONG_DOUBLE_COMPLEX"]
C_BOOL = PREDEFINED["C_BOOL"]
C_COMPLEX = PREDEFINED["C_COMPLEX"]
C_DOUBLE_COMPLEX = PREDEFINED["C_DOUBLE_COMPLEX"]
C_FLOAT_COMPLEX = PREDEFINED["C_FLOAT_COMPLEX"]
C_LONG_DOUBLE_COMPLEX = PREDEFINED["C_LONG_DOUBLE_COMPLEX"]
DOUBLE = PREDEFINED["DOUBLE"]
DOUBLE_COMPLEX = PREDEFINED["DOUBLE_COMPLEX"]
DOUBLE_INT = PREDEFINED["DOUBLE_INT"]
DOUBLE_PRECISION = PREDEFINED["DOUBLE_PRECISION"]
FLOAT = PREDEFINED["FLOAT"]
FLOAT16_T = PREDEFINED["FLOAT16_T"]
FLOAT32_T = PREDEFINED["FLOAT32_T"]
FLOAT64_T = PREDEFINED["FLOAT64_T"]
FLOAT_INT = PREDEFINED["FLOAT_INT"]
F_BOOL = PREDEFINED["F_BOOL"]
F_COMPLEX = PREDEFINED["F_COMPLEX"]
F_DOUBLE = PREDEFINED["F_DOUBLE"]
F_DOUBLE_COMPLEX = PREDEFINED["F_DOUBLE_COMPLEX"]
F_FLOAT = PREDEFINED["F_FLOAT"]
F_FLOAT_COMPLEX = PREDEFINED["F_FLOAT_COMPLEX"]
F_INT = PREDEFINED["F_INT"]
INT = PREDEFINED["INT"]
INT16_T = PREDEFINED["INT16_T"]
INT32_T = PREDEFINED["INT32_T"]
INT64_T = PREDEFINED["INT64_T"]
INT8_T = PREDEFINED["INT8_T"]
INTEGER = PREDEFINED["INTEGER"]
INTEGER1 = PREDEFINED["INTEGER1"]
INTEGER16 = PREDEFINED["INTEGER16"]
INTEGER2 = PREDEFINED["INTEGER2"]
INTEGER4 = PREDEFINED["INTEGER4"]
INTEGER8 = PREDEFINED["INTEGER8"]
INT_INT = PREDEFINED["INT_INT"]
LOGICAL = PREDEFINED["LOGICAL"]
LOGICAL1 = PREDEFINED["LOGICAL1"]
LOGICAL16 = PREDEFINED["LOGICAL16"]
LOGICAL2 = PREDEFINED["LOGICAL2"]
LOGICAL4 = PREDEFINED["LOGICAL4"]
LOGICAL8 = PREDEFINED["LOGICAL8"]
LONG = PREDEFINED["LONG"]
LONG_DOUBLE = PREDEFINED["LONG_DOUBLE"]
LONG_DOUBLE_INT = PREDEFINED["LONG_DOUBLE_INT"]
LONG_INT = PREDEFINED["LONG_INT"]
LONG_LONG = PREDEFINED["LONG_LONG"]
OFFSET = PREDEFINED["OFFSET"]
PACKED = PREDEFINED["PACKED"]
REAL = PREDEFINED["REAL"]
REAL16 = PREDEFINED["REAL16"]
REAL2 = PREDEFINED["REAL2"]
REAL4 = PREDEFINED["REAL4"]
REAL8 = PREDEFINED["REAL8"]
SHORT = PREDEFINED["SHORT"]
SHORT_INT = PREDEFINED["SHORT_INT"]
SIGNED_CHAR = PREDEFINED["SIGNED_CHAR"]
SIGNED_INT = PREDEFINED["SIGNED_INT"]
SIGNED_LONG = PREDEFINED["SIGNED_LONG"]
SIGNED_LONG_LONG = PREDEFINED["SIGNED_LONG_LONG"]
SIGNED_SHORT = PREDEFINED["SIGNED_SHORT"]
SINT16_T = PREDEFINED["SINT16_T"]
SINT32_T = PREDEFINED["SINT32_T"]
SINT64_T = PREDEFINED["SINT64_T"]
SINT8_T = PREDEFINED["SINT8_T"]
TWOINT = PREDEFINED["TWOINT"]
UINT16_T = PREDEFINED["UINT16_T"]
UINT32_T = PREDEFINED["UINT32_T"]
UINT64_T = PREDEFINED["UINT64_T"]
UINT8_T = PREDEFINED["UINT8_T"]
UNSIGNED = PREDEFINED["UNSIGNED"]
UNSIGNED_CHAR = PREDEFINED["UNSIGNED_CHAR"]
UNSIGNED_INT = PREDEFINED["UNSIGNED_INT"]
UNSIGNED_LONG = PREDEFINED["UNSIGNED_LONG"]
UNSIGNED_LONG_LONG = PREDEFINED["UNSIGNED_LONG_LONG"]
UNSIGNED_SHORT = PREDEFINED["UNSIGNED_SHORT"]
WCHAR = PREDEFINED["WCHAR"]
