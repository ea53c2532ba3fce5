"""A process that no launcher started: rank 0 of 1."""

from __future__ import annotations

import os
import secrets
from typing import NoReturn

from .base import Bootstrap
from .ending import leave


class Single(Bootstrap):
    """The world of one process. The constructor cannot fail and opens nothing."""

    name = "single"

    def __init__(self) -> None:
        self.rank = 0
        self.size = 1
        self._key = b""

    def allgather(self, blob: bytes) -> list[bytes]:
        return [bytes(blob)]

    def barrier(self) -> None:
        return

    def job_key(self) -> bytes:
        if not self._key:
            self._key = secrets.token_bytes(32)
        return self._key

    def abort(self, code: int, message: str = "") -> NoReturn:
        leave(code, message, os.getpid())

    def finalize(self) -> None:
        return
