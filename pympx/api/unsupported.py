"""Names of mpi4py.MPI that pympx does not implement yet: they exist and raise ERR_UNSUPPORTED_OPERATION naming themselves.

`complete` gives a class the attributes that names.py lists and it lacks. What is implemented is thus what has no stub: the table in
README.md is made from that (support).
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import getattr_static
from typing import Any, TypeVar

from . import names
from .errors import UnsupportedError

C = TypeVar("C", bound=type)
_MARK = "_pympx_unsupported"


def function(name: str) -> Callable[..., Any]:
    """Return a function that raises UnsupportedError with `name`."""

    def stub(*args: Any, **kwargs: Any) -> Any:
        raise UnsupportedError(f"MPI.{name}")

    stub.__name__ = stub.__qualname__ = name.rpartition(".")[2]
    stub.__doc__ = f"Raise UnsupportedError: MPI.{name} is not supported yet."
    setattr(stub, _MARK, True)
    return stub


def complete(cls: C) -> C:
    """Class decorator: add a stub for every attribute that mpi4py's class of this name has and `cls` lacks."""
    for kind, listed in names.CLASSES[cls.__name__].items():
        for name in listed.split():
            if hasattr(cls, name):
                continue
            stub: Any = function(f"{cls.__name__}.{name}")
            if kind != "methods":
                stub = {"classmethods": classmethod, "staticmethods": staticmethod, "properties": property}[kind](stub)
            setattr(cls, name, stub)
    return cls


def is_supported(owner: object, name: str) -> bool:
    """Return whether attribute `name` of a class or module is more than a stub."""
    found = getattr_static(owner, name)
    if isinstance(found, property):
        found = found.fget
    elif isinstance(found, (classmethod, staticmethod)):
        found = found.__func__
    return not getattr(found, _MARK, False)


class _Handle:
    """What null handles of unsupported classes can do: be false, be equal to each other."""

    __slots__ = ()

    def __init__(self, other: Any = None, /) -> None:
        if other is not None and not isinstance(other, type(self)):
            raise TypeError(f"expecting {type(self).__name__}, not {type(other).__name__}")

    def __bool__(self) -> bool:
        return False

    def __eq__(self, other: object) -> bool:
        return True if isinstance(other, type(self)) else NotImplemented

    def __hash__(self) -> int:
        return hash(type(self))

    def __repr__(self) -> str:
        return f"<null {type(self).__name__}>"

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(self), ()

    def free(self) -> None:
        """Do nothing: there is nothing to free."""


@complete
class Win(_Handle):
    """A window of memory for one-sided access; not supported yet."""

    __slots__ = ()


@complete
class File(_Handle):
    """A file that ranks share; not supported yet."""

    __slots__ = ()


@complete
class Session(_Handle):
    """A session; not supported yet."""

    __slots__ = ()


@complete
class Message(_Handle):
    """A message that was probed and taken; not supported yet."""

    __slots__ = ("_no_proc",)

    def __init__(self, other: Message | None = None, /, *, no_proc: bool = False) -> None:
        super().__init__(other)
        self._no_proc: bool = no_proc if other is None else other._no_proc

    def __bool__(self) -> bool:
        return self._no_proc

    def __eq__(self, other: object) -> bool:
        return self._no_proc == other._no_proc if isinstance(other, Message) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._no_proc)


WIN_NULL, FILE_NULL, SESSION_NULL = Win(), File(), Session()
MESSAGE_NULL, MESSAGE_NO_PROC = Message(), Message(no_proc=True)

Add_error_class = function("Add_error_class")
Add_error_code = function("Add_error_code")
Add_error_string = function("Add_error_string")
Close_port = function("Close_port")
Flush_buffer = function("Flush_buffer")
Get_abi_fortran_info = function("Get_abi_fortran_info")
Get_abi_info = function("Get_abi_info")
Get_abi_version = function("Get_abi_version")
Iflush_buffer = function("Iflush_buffer")
Lookup_name = function("Lookup_name")
Open_port = function("Open_port")
Publish_name = function("Publish_name")
Register_datarep = function("Register_datarep")
Remove_error_class = function("Remove_error_class")
Remove_error_code = function("Remove_error_code")
Remove_error_string = function("Remove_error_string")
Unpublish_name = function("Unpublish_name")
