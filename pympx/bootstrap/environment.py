"""Reading a launcher's variables: every bad value becomes one line that names the variable."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping

from .base import BootstrapError

_DECIMAL = re.compile(r"[0-9]{1,9}", re.ASCII)


def number(environ: Mapping[str, str], key: str, low: int = 0, high: int = 2**31 - 1) -> int:
    """Return `environ[key]` as an integer within [low, high]. Raises BootstrapError."""
    text = environ.get(key)
    if text is None:
        raise BootstrapError(f"pympx: {key} is not set: start this program by a launcher, or set PYMPX_BOOTSTRAP=single")
    if not _DECIMAL.fullmatch(text.strip()) or not low <= int(text) <= high:
        raise BootstrapError(f"pympx: {key}={text!r} is not a number from {low} to {high}: correct it, or set PYMPX_BOOTSTRAP=single")
    return int(text)


def place(environ: Mapping[str, str], rank_key: str, size_key: str) -> tuple[int, int]:
    """Return (rank, size) from two variables. Raises BootstrapError unless 0 <= rank < size."""
    rank, size = number(environ, rank_key), number(environ, size_key, low=1)
    if rank >= size:
        raise BootstrapError(
            f"pympx: {rank_key}={rank} does not fit {size_key}={size}, ranks run from 0 to {size - 1}: correct what sets them"
        )
    return rank, size


def socket_inode(text: str | None) -> int:
    """Return the inode of the socket whose descriptor number is `text`, which identifies it for its life; 0 when it is no open socket."""
    if text is None or not _DECIMAL.fullmatch(text):
        return 0
    try:
        info = os.fstat(int(text))
    except OSError:
        return 0
    return info.st_ino if stat.S_ISSOCK(info.st_mode) else 0
