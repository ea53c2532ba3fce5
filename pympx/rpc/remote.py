"""What calls name and carry: functions by reference, exported handlers, exceptions with their traceback."""

from __future__ import annotations

import logging
import pickle
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from types import BuiltinFunctionType, FunctionType, ModuleType, NoneType
from typing import Any, TypeVar, overload

Function = TypeVar("Function", bound=Callable[..., Any])

#: what a call's message says, by function; and the function, by that
names: dict[Callable[..., Any] | str, bytes] = {}
handlers: dict[bytes, Callable[..., Any]] = {}
_EXPORTED = "@"
_log = logging.getLogger("pympx.rpc")


class RemoteError(RuntimeError):
    """A function raised at another rank what cannot be raised here; or the answer could not be read."""


class DeadlineExceeded(TimeoutError):
    """The deadline of a call passed before its answer came. The message says whether the call was begun."""


class RemoteTraceback(Exception):  # noqa: N818 - no error of its own, as in multiprocessing
    """The cause of an exception that a call raises: the traceback where it was raised, as text."""

    def __str__(self) -> str:
        return str(self.args[0])


@overload
def export(function: Function, /) -> Function: ...
@overload
def export(name: str, /) -> Callable[[Function], Function]: ...
def export(function: Any, /) -> Any:
    """Let other ranks call a function by a name: ``@export``, or ``@export("name")``; ``call(rank, "name")`` then calls it.

    Returns the function, which can be given to call() as well: its name travels, so the ranks may have different functions under it.
    Raises ValueError if the name is taken by another function.
    """
    if isinstance(function, str):
        return lambda decorated: _export(decorated, function)
    return _export(function, function.__name__)


def _export(function: Function, name: str) -> Function:
    word = (_EXPORTED + name).encode()
    if handlers.setdefault(word, function) is not function:
        raise ValueError(f"another function is exported as {name!r} already: {described(handlers[word])}")
    names[function] = names[name] = word
    return function


def described(function: object) -> str:
    """Return how messages call a function."""
    return function if isinstance(function, str) else getattr(function, "__qualname__", None) or repr(function)


def name_of(function: Callable[..., Any] | str) -> bytes:
    """Return the name of a function in messages; empty when it has to travel in the pickle (methods, partials, classes).

    Raises TypeError for what is no function, and for functions that other ranks cannot find (lambda, nested).
    """
    if isinstance(function, str):
        name = (_EXPORTED + function).encode()
    elif isinstance(function, (FunctionType, BuiltinFunctionType)) and _is_free(function):
        module, path = function.__module__ or "builtins", function.__qualname__
        try:
            found = _look_up(module, path)
        except (ImportError, AttributeError):
            found = None
        if found is not function:
            cure = "define it at the top of a module, or export it"
            raise TypeError(f"{path} is not found as {module}.{path}, so other ranks cannot find it either: {cure}")
        name = f"{module}:{path}".encode()
    elif callable(function):
        return b""
    else:
        raise TypeError(f"call: expecting a function or the name of an exported one, not {type(function).__name__}")
    names[function] = name
    return name


def _is_free(function: Any) -> bool:
    """Whether a function is no method bound to an object (those of C modules are bound to the module)."""
    return isinstance(getattr(function, "__self__", None), (ModuleType, NoneType))


def _look_up(module: str, path: str) -> Any:
    found: Any = sys.modules.get(module) or import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return found


def find(name: bytes) -> Callable[..., Any]:
    """Return the function that a message names. Raises LookupError when it is not here."""
    text = name.decode()
    if text.startswith(_EXPORTED):
        there = ", ".join(sorted(known.decode()[1:] for known in handlers if known.startswith(_EXPORTED.encode()))) or "none"
        raise LookupError(f"no function is exported as {text[1:]!r} here; exported are: {there}")
    module, _, path = text.partition(":")
    try:
        function: Callable[..., Any] = _look_up(module, path)
    except (ImportError, AttributeError) as error:
        raise LookupError(f"no function {module}.{path} here: {error}") from error
    handlers[name] = function
    return function


def packed(error: BaseException) -> tuple[BaseException, str]:
    """Return an exception and its traceback as text, both fit to travel."""
    frames = error.__traceback__.tb_next if error.__traceback__ and error.__traceback__.tb_next else error.__traceback__
    text = "".join(traceback.format_exception(type(error), error, frames))
    error.__traceback__ = None
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - ours
    except Exception:  # noqa: BLE001 - whatever an exception's own __reduce__ raises
        return RemoteError("".join(traceback.format_exception_only(type(error), error)).strip()), text
    return error, text


def exception_of(answer: tuple[BaseException, str], rank: int) -> BaseException:
    """Return what a call raises for the answer of packed()."""
    error, text = answer
    error.__cause__ = RemoteTraceback(f"\n\n--- on rank {rank}:\n{text}")
    return error


def report(name: bytes, source: int, error: BaseException) -> None:
    """Say that a function raised which nobody waits for."""
    _log.error("notification of rank %d: %s raised", source, name.decode().lstrip(_EXPORTED), exc_info=error)


def join() -> None:
    """Start the runtime, and calls with it."""
    from .. import runtime

    runtime.start()
