"""Control path of the shm transport: says whether memfd segments can be made here and opened through /proc."""

from __future__ import annotations

import os
from pathlib import Path

from pympx.plugins.api import NativeTransport, TransportPlugin, hookimpl


class ShmTransport(NativeTransport):
    """Rings in shared memory between processes of one user on one host."""

    def __init__(self) -> None:
        library = Path(__file__).with_name("_fastpath.so")
        super().__init__("shm", "rings in shared memory, for processes of one user on one host", library)

    def probe(self) -> str | None:
        """Make what each iface makes (a memfd, a pidfd), and open the memfd as a peer would."""
        reason = super().probe()
        if reason is not None:
            return reason
        fds: list[int] = []
        step = "memfd_create"
        try:
            fds.append(os.memfd_create("pympx-probe", os.MFD_CLOEXEC))
            step = "ftruncate of a memfd"
            os.ftruncate(fds[0], 1)
            step = "opening a memfd through /proc"
            fds.append(os.open(f"/proc/{os.getpid()}/fd/{fds[0]}", os.O_RDWR | os.O_CLOEXEC))
            if not os.path.sameopenfile(fds[0], fds[1]):
                return "/proc/PID/fd leads to another process's files (is /proc of another pid namespace?)"
            step = "pidfd_open"
            fds.append(os.pidfd_open(os.getpid()))
        except OSError as error:
            return f"{step} is refused here: {error.strerror}"
        finally:
            for fd in fds:
                os.close(fd)
        return None


@hookimpl
def pympx_transport() -> TransportPlugin:
    return ShmTransport()
