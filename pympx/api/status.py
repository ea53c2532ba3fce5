"""Status: the conversions of MPI's own (MPI 4.1, sections 3.2.5 and 19.3.5)."""

from __future__ import annotations

from collections.abc import Sequence

from ..bindings.status import Status as _Status
from .constants import F_STATUS_SIZE
from .error_classes import ERR_ARG
from .errors import Exception


class Status(_Status):
    """Source (rank), tag, error class, size and cancellation of a message. Reusable across calls."""

    __slots__ = ()

    def py2f(self) -> list[int]:
        """Return the integers of the status in Fortran's form."""
        return list(self.tomemory())

    @classmethod
    def f2py(cls, arg: Sequence[int]) -> Status:
        """Return a status from the integers of Fortran's form."""
        if len(arg) != F_STATUS_SIZE:
            raise Exception(ERR_ARG, f"Status.f2py: expecting {F_STATUS_SIZE} integers, got {len(arg)}")
        status = cls()
        memory = status.tomemory()
        for i, value in enumerate(arg):
            memory[i] = value
        return status
