"""Reading a launcher's variables: every bad value becomes one line that names the variable."""

from __future__ import annotations

import os
import re
import stat
import struct
from collections.abc import Iterator, Mapping

from .base import BootstrapError

_CREDENTIALS = struct.Struct("=iII")  # struct ucred: pid, uid, gid
_DECIMAL = re.compile(r"[0-9]{1,10}", re.ASCII)


def number(environ: Mapping[str, str], key: str, low: int = 0, high: int = 2**31 - 1) -> int:
    """Return `environ[key]` as an integer within [low, high]. Raises BootstrapError."""
    text = environ.get(key)
    if text is None:
        raise BootstrapError(f"pympx: {key} is not set: start this program by a launcher, or set PYMPX_BOOTSTRAP=single")
    digits = text.strip()
    if not _DECIMAL.fullmatch(digits) or not low <= int(digits) <= high:
        raise BootstrapError(f"pympx: {key}={text!r} is not a number from {low} to {high}: correct it, or set PYMPX_BOOTSTRAP=single")
    return int(digits)


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
    except (OSError, OverflowError):
        return 0
    return info.st_ino if stat.S_ISSOCK(info.st_mode) else 0


def made_by_ancestor(descriptor: int) -> bool:
    """Tell whether an open socket is one that a launcher above this process made: a Unix socket of another, still living process.

    It tells an inherited PMI_FD from whatever this program has opened since at the same number.
    """
    import socket  # here, because importing pympx must stay light

    with socket.socket(fileno=os.dup(descriptor)) as connection:
        if connection.family != socket.AF_UNIX:
            return False
        peer, _uid, _gid = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return peer == 0 or peer in ancestors()  # 0: it is outside of our PID namespace


def ancestors() -> Iterator[int]:
    """Yield the processes above this one, from its parent on, as far as /proc shows them."""
    pid = os.getppid()
    while pid:
        yield pid
        try:
            with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
                pid = int(file.read().rpartition(")")[2].split()[1])
        except OSError:
            return


def environment_of(pid: int) -> dict[str, str] | None:
    """Return the environment that process `pid` was started with; None when it may not be read."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            words = file.read().split(b"\0")
    except OSError:
        return None
    return dict(os.fsdecode(word).partition("=")[::2] for word in words if b"=" in word)
