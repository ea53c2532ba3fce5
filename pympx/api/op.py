"""Reduction operations (MPI 4.1, section 6.9)."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from ..bindings.op import Op as _Op
from .handles import Handled, Table
from .memory import Memory, from_address
from .unsupported import complete


@complete
class Op(_Op, Handled):
    """A reduction operation. The predefined ones are module attributes: SUM, MAX, ..."""

    __slots__ = ()
    _table: Table[Any] = Table(0x18000000)

    @classmethod
    def Create(cls, function: Callable[[Any, Any, Any], None], commute: bool = False) -> Op:
        """Make an operation of ``function(inbuf, inoutbuf, datatype)``, which writes inbuf op inoutbuf to inoutbuf."""
        op: Op = cls()._define_user(function, commute)
        return op

    def Free(self) -> None:
        """Become OP_NULL."""
        self._clear()

    def free(self) -> None:
        """Become OP_NULL, unless predefined."""
        if not self.is_predefined:
            self._clear()

    def Is_commutative(self) -> bool:
        """Return whether the order of operands does not matter."""
        return self.commutative

    @property
    def is_commutative(self) -> bool:
        """Whether the order of operands does not matter."""
        return self.commutative

    def __reduce__(self) -> Any:
        if not self:
            return Op, ()
        return (_by_name, (self.name,)) if self.is_predefined else (Op.Create, (self.function, self.commutative))

    def __repr__(self) -> str:
        return self.name or f"<user-defined op {hash(self)}>"


def _by_name(name: str) -> Op:
    return PREDEFINED[name.removeprefix("MPI_")]


def _located(better: Callable[[Any, Any], bool]) -> Callable[[Any, Any], Any]:
    def function(x: Any, y: Any) -> Any:
        if x[0] == y[0]:
            return x if x[1] <= y[1] else y
        return x if better(x[0], y[0]) else y

    return function


OP_NULL = Op()
# In the order of mpx::ReduceOp in engine/reduce.h.
_FUNCTIONS: dict[str, Callable[[Any, Any], Any]] = {
    "SUM": operator.add,
    "PROD": operator.mul,
    "MIN": lambda x, y: y if y < x else x,
    "MAX": lambda x, y: y if y > x else x,
    "LAND": lambda x, y: bool(x) and bool(y),
    "LOR": lambda x, y: bool(x) or bool(y),
    "LXOR": lambda x, y: bool(x) != bool(y),
    "BAND": operator.and_,
    "BOR": operator.or_,
    "BXOR": operator.xor,
    "MINLOC": _located(operator.lt),
    "MAXLOC": _located(operator.gt),
    "REPLACE": lambda x, y: y,
    "NO_OP": lambda x, y: x,
}
PREDEFINED: dict[str, Op] = {
    name: Op()._define(f"MPI_{name}", number + 1, number, name not in ("REPLACE", "NO_OP"), function)
    for number, (name, function) in enumerate(_FUNCTIONS.items())
}
BAND = PREDEFINED["BAND"]
BOR = PREDEFINED["BOR"]
BXOR = PREDEFINED["BXOR"]
LAND = PREDEFINED["LAND"]
LOR = PREDEFINED["LOR"]
LXOR = PREDEFINED["LXOR"]
MAX = PREDEFINED["MAX"]
MAXLOC = PREDEFINED["MAXLOC"]
MIN = PREDEFINED["MIN"]
MINLOC = PREDEFINED["MINLOC"]
NO_OP = PREDEFINED["NO_OP"]
PROD = PREDEFINED["PROD"]
REPLACE = PREDEFINED["REPLACE"]
SUM = PREDEFINED["SUM"]


def run_reduction(reduction: Any, inbuf: int, inout: int, nbytes: int) -> None:
    """Run a user's function on two pieces of memory; called by whoever waits for the collective."""
    a: Memory = from_address(inbuf, nbytes, readonly=True)
    b: Memory = from_address(inout, nbytes)
    try:
        reduction.op.function(a, b, reduction.datatype)
    finally:
        a.release()
        b.release()
