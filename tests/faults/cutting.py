"""Cuts the tcp links of the rank that it runs in: a thread that picks one at random moments, as a bad network would."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import subprocess
import threading
from typing import Any

#: how links are cut: both ends read the end of the stream, or the kernel destroys the socket and the other end reads a reset
WAYS = ("shutdown", "destroy")


def sockets() -> list[socket.socket]:
    """Return duplicates of this process's IPv4 stream sockets; the caller closes them."""
    found = []
    for entry in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{entry}").startswith("socket:"):
                s = socket.socket(fileno=os.dup(int(entry)))
                if s.family == socket.AF_INET and s.type == socket.SOCK_STREAM:
                    found.append(s)
                else:
                    s.close()
    return found


def listening() -> list[int]:
    """Return the ports on which this process listens."""
    ports = []
    for s in sockets():
        if s.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            ports.append(s.getsockname()[1])
        s.close()
    return ports


def why_not(way: str) -> str:
    """Return why links cannot be cut in this way here, empty when they can."""
    if way == "shutdown":
        return ""
    if not shutil.which("ss"):
        return "there is no ss (iproute2)"
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as s:
        destroy(s)
        s.settimeout(2)
        try:
            s.recv(1)
        except TimeoutError:
            return "ss -K destroys nothing: not privileged, or a kernel without CONFIG_INET_DIAG_DESTROY"
        except OSError:
            pass
    return ""


def destroy(s: socket.socket) -> None:
    """Let the kernel destroy a connected socket."""
    (here, port), (there, other) = s.getsockname(), s.getpeername()
    subprocess.run(
        ["ss", "-K", "-t", "-n", "src", here, "sport", "=", f":{port}", "dst", there, "dport", "=", f":{other}"],
        check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


class Cutter(threading.Thread):
    """Cuts one of this rank's links to other ranks every `period` seconds or so, `limit` times; `cuts` is how often it did."""

    def __init__(self, comm: Any, way: str, period: float, seed: int, limit: int = 1 << 30) -> None:
        super().__init__(daemon=True)
        comm.Barrier()  # from now on this process listens
        self._ports = {port for ports in comm.allgather(listening()) for port in ports}
        self._way, self._period, self._limit = way, period, limit
        self._random = random.Random(seed)
        self._over = threading.Event()
        self.cuts = 0

    def run(self) -> None:
        while self.cuts < self._limit and not self._over.wait(self._random.uniform(0, 2 * self._period)):
            found = sockets()
            self._random.shuffle(found)
            for s in found:
                with contextlib.suppress(OSError):
                    if {s.getsockname()[1], s.getpeername()[1]} & self._ports:
                        if self._way == "shutdown":
                            s.shutdown(socket.SHUT_RDWR)
                        else:
                            destroy(s)
                        self.cuts += 1
                        break
            for s in found:
                s.close()

    def stop(self) -> None:
        """End the thread."""
        self._over.set()
        self.join()
