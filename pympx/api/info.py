"""Info: hints as strings under strings, in the order of their setting (MPI 4.1, chapter 10)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from .constants import MAX_INFO_KEY, MAX_INFO_VAL
from .error_classes import ERR_ARG, ERR_INFO, ERR_INFO_KEY, ERR_INFO_NOKEY, ERR_INFO_VALUE
from .errors import Exception
from .handles import Handled, Table
from .unsupported import complete


@complete
class Info(Handled):
    """Hints. pympx uses none of them so far. Behaves like a dict, too."""

    __slots__ = ("_values",)
    _table: Table[Any] = Table(0x1C000000)

    def __init__(self, info: Info | None = None) -> None:
        if info is not None and not isinstance(info, Info):
            raise TypeError(f"info: expecting Info, not {type(info).__name__}")
        # one dict for all names of one object; a list, so that all see it freed
        self._values: list[dict[str, str]] = [] if info is None else info._values

    @classmethod
    def Create(cls, items: Info | Mapping[str, str] | Iterable[tuple[str, str]] | None = None) -> Info:
        """Make a new Info with the given items."""
        info = cls()
        info._values = [{}]
        info.update(items if items is not None else ())
        return info

    def _items(self) -> dict[str, str]:
        if not self._values:
            raise Exception(ERR_INFO, "the info is INFO_NULL or was freed")
        return self._values[0]

    def Free(self) -> None:
        """Become INFO_NULL."""
        self._items()
        self._values.clear()

    def free(self) -> None:
        """Become INFO_NULL, if it is not that already."""
        self._values.clear()

    def Dup(self) -> Info:
        """Return a copy."""
        return Info.Create(self._items())

    def Get(self, key: str) -> str | None:
        """Return the value of a key, None if there is none."""
        return self._items().get(key)

    def Set(self, key: str, value: str) -> None:
        """Set a key."""
        if not 0 < len(key) <= MAX_INFO_KEY:
            raise Exception(ERR_INFO_KEY, f"Info.Set: key of {len(key)} characters, must be 1..{MAX_INFO_KEY}")
        if len(value) > MAX_INFO_VAL:
            raise Exception(ERR_INFO_VALUE, f"Info.Set: value of {len(value)} characters, must be at most {MAX_INFO_VAL}")
        self._items()[str(key)] = str(value)

    def Delete(self, key: str) -> None:
        """Remove a key."""
        if self._items().pop(key, None) is None:
            raise Exception(ERR_INFO_NOKEY, f"Info.Delete: there is no key {key!r}")

    def Get_nkeys(self) -> int:
        """Return the number of keys."""
        return len(self._items())

    def Get_nthkey(self, n: int) -> str:
        """Return key number n, from 0."""
        keys = list(self._items())
        if not 0 <= n < len(keys):
            raise Exception(ERR_ARG, f"Info.Get_nthkey: n is {n}, must be 0..{len(keys) - 1}")
        return keys[n]

    def __bool__(self) -> bool:
        return bool(self._values)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Info):
            return NotImplemented
        return self._values is other._values or not (self._values or other._values)

    def __hash__(self) -> int:
        return id(self._values) if self._values else 0

    def __len__(self) -> int:
        return len(self._values[0]) if self._values else 0

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __contains__(self, key: object) -> bool:
        return bool(self._values) and key in self._values[0]

    def __getitem__(self, key: str) -> str:
        return self._items()[key]

    def __setitem__(self, key: str, value: str) -> None:
        self.Set(key, value)

    def __delitem__(self, key: str) -> None:
        del self._items()[key]

    def __reduce__(self) -> Any:
        return (Info.Create, (dict(self._items()),)) if self else (Info, ())

    def get(self, key: str, default: str | None = None) -> str | None:
        """Return the value of a key, `default` if there is none."""
        return self._values[0].get(key, default) if self._values else default

    def keys(self) -> list[str]:
        """Return the keys."""
        return list(self._values[0]) if self._values else []

    def values(self) -> list[str]:
        """Return the values."""
        return list(self._values[0].values()) if self._values else []

    def items(self) -> list[tuple[str, str]]:
        """Return (key, value) of all keys."""
        return list(self._values[0].items()) if self._values else []

    def update(self, items: Info | Mapping[str, str] | Iterable[tuple[str, str]] = (), **more: str) -> None:
        """Set many keys."""
        pairs = items.items() if isinstance(items, (Info, Mapping)) else items
        for key, value in [*pairs, *more.items()]:
            self.Set(key, value)

    def pop(self, key: str, *default: str) -> str:
        """Remove a key and return its value, or `default`. Raises KeyError without one."""
        return self._items().pop(key, *default)

    def popitem(self) -> tuple[str, str]:
        """Remove the last key and return it with its value. Raises KeyError when there is none."""
        return self._items().popitem()

    def copy(self) -> Info:
        """Return a copy."""
        return self.Dup() if self else Info()

    def clear(self) -> None:
        """Remove all keys."""
        self._items().clear()


INFO_NULL = Info()
INFO_ENV = Info.Create()
