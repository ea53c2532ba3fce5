"""The last steps of a rank that ends the job: show what is buffered, say why, leave without running any more Python."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import termios
import time
from array import array
from typing import NoReturn


def exit_code(code: int) -> int:
    """Return `code` as an exit status that no shell takes for success: 1..255."""
    return code & 0xFF or 1


def flush_output(message: str) -> None:
    """Write what Python buffered for stdout and stderr, then `message` as one line to stderr. Raises nothing."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    if message:
        with contextlib.suppress(OSError):
            os.write(2, message.replace("\n", " ").encode("utf-8", "replace") + b"\n")


def wait_until_read(seconds: float) -> None:
    """Wait until stdout and stderr, where they are pipes, were read by the other end, at most `seconds`.

    Launchers drop what is still in a rank's pipes when a rank aborts the job.
    """
    end = time.monotonic() + seconds
    unread = array("i", [0])
    for fd in (1, 2):
        with contextlib.suppress(OSError):
            while time.monotonic() < end:
                fcntl.ioctl(fd, termios.FIONREAD, unread)
                if not unread[0]:
                    break
                time.sleep(0.001)
    # Read is not yet shown: the launcher's process on this host hands it on.
    time.sleep(min(0.05, seconds))


def leave(code: int, message: str, owner_pid: int) -> NoReturn:
    """End this process with `code` at once. A forked child of `owner_pid` shows no buffered output: it is its parent's."""
    if os.getpid() == owner_pid:
        flush_output(message)
    os._exit(exit_code(code))
