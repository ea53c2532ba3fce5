"""Attributes of communicators: values that programs keep under keys of their own (MPI 4.1, section 7.7)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .constants import ANY_SOURCE, IO, KEYVAL_INVALID, LASTUSEDCODE, TAG_UB, WTIME_IS_GLOBAL
from .error_classes import CLASSES, ERR_KEYVAL
from .errors import Exception

if TYPE_CHECKING:
    from .comm import Comm

_Copy = Callable[["Comm", int, Any], Any] | bool | None
_Delete = Callable[["Comm", int, Any], Any] | None

#: largest tag; any rank can do I/O; clocks of hosts are not synchronized; the last error class
_PREDEFINED = {TAG_UB: 0x7FFFFFFF, IO: ANY_SOURCE, WTIME_IS_GLOBAL: 0, LASTUSEDCODE: max(value for value, _ in CLASSES.values())}
_keyvals: dict[int, tuple[_Copy, _Delete]] = {}
_last = [KEYVAL_INVALID]


def _of(comm: Comm) -> dict[int, Any]:
    try:
        return comm._attributes
    except AttributeError:
        comm._attributes = {}
        return comm._attributes


def create(copy: _Copy, delete: _Delete) -> int:
    """Return a new key."""
    _last[0] += 1
    _keyvals[_last[0]] = copy, delete
    return _last[0]


def free(keyval: int) -> int:
    """Forget a key."""
    if _keyvals.pop(keyval, None) is None:
        raise Exception(ERR_KEYVAL, f"Free_keyval: {keyval} is no key from Create_keyval")
    return KEYVAL_INVALID


def get(comm: Comm, keyval: int) -> Any:
    """Return the value, None if there is none."""
    if keyval == KEYVAL_INVALID:
        raise Exception(ERR_KEYVAL, "Get_attr: the key is KEYVAL_INVALID")
    return _PREDEFINED[keyval] if keyval in _PREDEFINED else _of(comm).get(keyval)


def put(comm: Comm, keyval: int, value: Any) -> None:
    """Set a value; an earlier one is deleted."""
    if keyval not in _keyvals:
        raise Exception(ERR_KEYVAL, f"Set_attr: {keyval} is no key from Create_keyval")
    if keyval in _of(comm):
        delete(comm, keyval)
    _of(comm)[keyval] = value


def delete(comm: Comm, keyval: int) -> None:
    """Delete a value, after its key's function has seen it."""
    if keyval not in _of(comm):
        raise Exception(ERR_KEYVAL, f"Delete_attr: the communicator has no attribute under {keyval}")
    finish = _keyvals.get(keyval, (None, None))[1]
    if finish is not None:
        finish(comm, keyval, _of(comm)[keyval])
    del _of(comm)[keyval]


def copy(comm: Comm, new: Comm) -> None:
    """Give `new`, a Dup, the attributes whose keys say so."""
    for keyval, value in list(_of(comm).items()):
        how = _keyvals.get(keyval, (None, None))[0]
        if how is True:
            _of(new)[keyval] = value
        elif callable(how):
            copied = how(comm, keyval, value)
            if copied is not NotImplemented:
                _of(new)[keyval] = copied


def clear(comm: Comm) -> None:
    """Delete all values, the latest first."""
    for keyval in reversed(list(_of(comm))):
        delete(comm, keyval)
