"""Error classes and the Exception that carries them (MPI 4.1, section 9.4)."""

from __future__ import annotations

from typing import Any

from ..bindings import errors as _errors
from .error_classes import CLASSES, ERR_UNSUPPORTED_OPERATION

_SENTENCES = {value: (name, sentence) for name, (value, sentence) in CLASSES.items()}


class Exception(RuntimeError):  # noqa: A001 - mpi4py's name
    """An error of an MPI call. Compares with, and converts to, its error class.

    `ierr`: error class. `message`: what happened, where, what to do.
    """

    def __init__(self, ierr: int = 0, message: str = "", /) -> None:
        super().__init__(ierr)
        self.ob_mpi = int(ierr)
        self.message = message

    def __str__(self) -> str:
        name = _SENTENCES.get(self.ob_mpi, ("", ""))[0]
        return f"MPI_{name}: {self.message}" if self.message else self.Get_error_string()

    def __int__(self) -> int:
        return self.ob_mpi

    def __bool__(self) -> bool:
        return self.ob_mpi != 0

    def __hash__(self) -> int:
        return hash(self.ob_mpi)

    def __eq__(self, other: object) -> bool:
        return self.ob_mpi == int(other) if isinstance(other, (int, Exception)) else NotImplemented

    def __lt__(self, other: Any) -> bool:
        return self.ob_mpi < int(other)

    def __le__(self, other: Any) -> bool:
        return self.ob_mpi <= int(other)

    def __gt__(self, other: Any) -> bool:
        return self.ob_mpi > int(other)

    def __ge__(self, other: Any) -> bool:
        return self.ob_mpi >= int(other)

    def Get_error_code(self) -> int:
        """Return the error code; here always its class."""
        return self.ob_mpi

    def Get_error_class(self) -> int:
        """Return the error class."""
        return self.ob_mpi

    def Get_error_string(self) -> str:
        """Return the sentence for the error class."""
        name, sentence = _SENTENCES.get(self.ob_mpi, ("ERR_UNKNOWN", "unknown error code"))
        return f"MPI_{name}: {sentence}"

    error_code = property(Get_error_code, doc="Error code.")
    error_class = property(Get_error_class, doc="Error class.")
    error_string = property(Get_error_string, doc="Sentence for the error class.")


class UnsupportedError(Exception, NotImplementedError):
    """A name of MPI that pympx does not implement yet. `name`: as users write it, MPI.Comm.Spawn."""

    def __init__(self, name: str = "it", /) -> None:
        super().__init__(ERR_UNSUPPORTED_OPERATION, f"{name} is not supported by pympx yet (see the table in README.md)")
        self.name = name


def _make(ierr: int, message: str) -> Exception:
    return Exception(ierr, message)


_errors.register(_make)
