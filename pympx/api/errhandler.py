"""Error handlers: pympx has one way, MPI's ERRORS_RETURN, which in Python means that errors are raised (MPI 4.1, section 9.3)."""

from __future__ import annotations

from typing import Any

from .error_classes import ERR_ERRHANDLER
from .errors import Exception, UnsupportedError
from .handles import Handled, Table
from .unsupported import complete


@complete
class Errhandler(Handled):
    """An error handler: one of the predefined ones."""

    __slots__ = ("_name",)
    _table: Table[Any] = Table(0x14000000)

    def __init__(self, errhandler: Errhandler | None = None) -> None:
        if errhandler is not None and not isinstance(errhandler, Errhandler):
            raise TypeError(f"errhandler: expecting Errhandler, not {type(errhandler).__name__}")
        self._name: str = "" if errhandler is None else errhandler._name

    @classmethod
    def _named(cls, name: str) -> Errhandler:
        handler = cls()
        handler._name = name
        return handler

    def Free(self) -> None:
        """Become ERRHANDLER_NULL."""
        if not self._name:
            raise Exception(ERR_ERRHANDLER, "the error handler is ERRHANDLER_NULL or was freed")
        self._name = ""

    def free(self) -> None:
        """Become ERRHANDLER_NULL, if it is not predefined."""

    def __bool__(self) -> bool:
        return bool(self._name)

    def __eq__(self, other: object) -> bool:
        return self._name == other._name if isinstance(other, Errhandler) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._name)

    def __repr__(self) -> str:
        return self._name or "ERRHANDLER_NULL"

    def __reduce__(self) -> Any:
        return Errhandler._named, (self._name,)


ERRHANDLER_NULL = Errhandler()
ERRORS_RETURN = Errhandler._named("ERRORS_RETURN")
ERRORS_ABORT = Errhandler._named("ERRORS_ABORT")
ERRORS_ARE_FATAL = Errhandler._named("ERRORS_ARE_FATAL")


def must_raise(what: str, handler: Errhandler) -> None:
    """Accept ERRORS_RETURN only. Raises UnsupportedError for another handler, ERR_ERRHANDLER for ERRHANDLER_NULL."""
    if not handler:
        raise Exception(ERR_ERRHANDLER, f"{what}: the error handler is ERRHANDLER_NULL")
    if handler != ERRORS_RETURN:
        raise UnsupportedError(f"{what} with {handler!r}")
