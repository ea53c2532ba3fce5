"""How the lower-case methods pickle: `MPI.Pickle` and its instance `MPI.pickle`, which programs may configure."""

from __future__ import annotations

import pickle as _pickle
from collections.abc import Callable, Iterable
from typing import Any

from ..bindings import pickling as _pickling
from .memory import Memory

_Dumps = Callable[..., bytes]
_Loads = Callable[..., Any]
#: buffers of at least so many bytes travel out-of-band
_THRESHOLD = 4096


class Pickle:
    """A pickler: functions like pickle.dumps and pickle.loads, a protocol, and from how many bytes on buffers go out-of-band.

    Calling ``MPI.pickle.__init__(dumps, loads)`` changes what send, recv and the other lower-case methods use.
    """

    def __init__(
        self, dumps: _Dumps | None = None, loads: _Loads | None = None, protocol: int | None = None, threshold: int | None = None
    ) -> None:
        self._dumps: _Dumps = _pickle.dumps if dumps is None else dumps
        self._loads: _Loads = _pickle.loads if loads is None else loads
        # functions of other modules choose their own protocol unless told
        self._protocol = (_pickle.HIGHEST_PROTOCOL if dumps is None else None) if protocol is None else protocol
        self._threshold = _THRESHOLD if threshold is None else threshold
        self._apply()

    def _apply(self) -> None:
        """Let the lower-case methods follow, if this is the instance that they use."""
        if globals().get("pickle") is self:
            _pickling.configure(self.dumps if self._protocol is None else self._dumps, self._loads, self._protocol or 0, self._threshold)

    @property
    def PROTOCOL(self) -> int | None:
        """Protocol number; None: what the function takes by default. Out-of-band buffers need 5."""
        return self._protocol

    @PROTOCOL.setter
    def PROTOCOL(self, value: int | None) -> None:
        self._protocol = _pickle.HIGHEST_PROTOCOL if value is None and self._dumps is _pickle.dumps else value
        self._apply()

    @property
    def THRESHOLD(self) -> int:
        """Bytes from which on a buffer travels out-of-band."""
        return self._threshold

    @THRESHOLD.setter
    def THRESHOLD(self, value: int | None) -> None:
        self._threshold = _THRESHOLD if value is None else value
        self._apply()

    def dumps(self, obj: Any, *ignored: Any) -> bytes:
        """Return the pickle of an object, everything in one piece."""
        return self._dumps(obj) if self._protocol is None else self._dumps(obj, self._protocol)

    def loads(self, data: Any) -> Any:
        """Return the object of a pickle."""
        return self._loads(data)

    def dumps_oob(self, obj: Any) -> tuple[bytes, list[memoryview]]:
        """Return the pickle of an object and the buffers that are left out of it, of THRESHOLD bytes or more."""
        buffers: list[memoryview] = []

        def collect(item: _pickle.PickleBuffer) -> bool:
            try:
                view = item.raw()
            except BufferError:
                return True
            if view.nbytes < self._threshold:
                return True
            buffers.append(view)
            return False

        protocol = 5 if self._protocol is None else max(self._protocol, 5)
        return self._dumps(obj, protocol, buffer_callback=collect), buffers

    def loads_oob(self, data: Any, buffers: Iterable[Memory]) -> Any:
        """Return the object of a pickle and its out-of-band buffers."""
        return self._loads(data, buffers=buffers)


pickle = Pickle()
