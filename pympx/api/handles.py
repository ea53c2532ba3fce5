"""Integers that stand for objects of MPI: what `handle`, `toint` and `py2f` give and `fromhandle`, `fromint`, `f2py` take.

They are numbers of this process without meaning for C or Fortran. An object whose number was asked for lives until it is freed.
"""

from __future__ import annotations

from typing import Any, Generic, Self, TypeVar

T = TypeVar("T")


class Table(Generic[T]):
    """The objects of one kind by their numbers. Objects that became false (freed, complete) are forgotten."""

    def __init__(self, null: int) -> None:
        self._null = null
        self._next = null + 1
        self._objects: dict[int, T] = {}

    def number(self, obj: T) -> int:
        """Return the number of an object; equal objects have the same one."""
        if not obj:
            return self._null
        for number, other in list(self._objects.items()):
            if not other:
                del self._objects[number]
            elif other == obj:
                return number
        number, self._next = self._next, self._next + 1
        self._objects[number] = obj
        return number

    def object(self, number: int) -> T | None:
        """Return the object of a number, None for the null handle. Raises ValueError for a number that was never given."""
        if number == self._null:
            return None
        try:
            return self._objects[number]
        except KeyError:
            raise ValueError(f"handle {number:#x} belongs to no live object of this kind") from None


class Handled:
    """Mixin: the conversions. `_table` is the class's table; ``cls(obj)`` must give a second name for `obj`, ``cls()`` the null object."""

    __slots__ = ()
    _table: Table[Any]

    @property
    def handle(self) -> int:
        """Number of this object in this process."""
        return self._table.number(self)

    def toint(self) -> int:
        """Return the number of this object in this process."""
        return self._table.number(self)

    def py2f(self) -> int:
        """Return the number of this object in this process."""
        return self._table.number(self)

    @classmethod
    def fromhandle(cls, handle: int) -> Self:
        """Return the object of a number."""
        found = cls._table.object(handle)
        return cls() if found is None else cls(found)  # type: ignore[call-arg]

    @classmethod
    def fromint(cls, arg: int) -> Self:
        """Return the object of a number."""
        return cls.fromhandle(arg)

    @classmethod
    def f2py(cls, arg: int) -> Self:
        """Return the object of a number."""
        return cls.fromhandle(arg)
