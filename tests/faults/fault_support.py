"""Ranks without a launcher: started one by one with torchrun-style variables, so that nobody ends the others when one dies.

A program's text gets `MPI`, `np`, `comm`, `rank`, `size`, and helpers: `say(word)` tells the test that a point was reached,
`listen()` waits for the test's word, `failed(call)` runs a call that must raise ERR_PROC_FAILED and returns (seconds, message),
`soon_asleep()` lets another thread say "asleep" once the main thread sleeps in the kernel.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
import time
from types import TracebackType

PRELUDE = """
import os, signal, socket, sys, threading, time
import numpy as np
from pympx import MPI

def say(word):
    os.write(1, f"{word}\\n".encode())  # a daemon thread may hold no lock of stdout when the interpreter ends

def listen():
    return sys.stdin.readline().strip()

def failed(call):
    start = time.monotonic()
    try:
        call()
    except MPI.Exception as error:
        assert error.Get_error_class() == MPI.ERR_PROC_FAILED, error
        return time.monotonic() - start, str(error)
    raise AssertionError("the call did not raise")

def soon_asleep():
    def watch():
        seen = 0
        while seen < 20:
            with open(f"/proc/{os.getpid()}/task/{os.getpid()}/stat") as file:
                seen = seen + 1 if file.read().rpartition(")")[2].split()[0] == "S" else 0
            time.sleep(0.002)
        say("asleep")
    threading.Thread(target=watch, daemon=True).start()

comm = MPI.COMM_WORLD
rank, size = comm.rank, comm.size
comm.Barrier()
for peer in range(size):  # everybody has met everybody
    if peer != rank:
        comm.Sendrecv(np.zeros(1), peer, 3000, np.zeros(1), peer, 3000)
comm.Barrier()
say("met")
"""
_SIGNS = ("PMI", "PMIX_", "OMPI_", "SLURM_", "PYMPX_", "MPI_LOCAL", "TORCHELASTIC", "MASTER_", "HYD")


class Ranks:
    """Processes of one job. A context manager: it begins when everybody has met everybody; what is left at the end is killed."""

    def __init__(self, size: int, transport: str, text: str, **settings: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        clean = {k: v for k, v in os.environ.items() if not k.startswith(_SIGNS) and k not in ("RANK", "WORLD_SIZE")}
        self.processes = []
        for rank in range(size):
            env = clean | {
                "RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                "PYMPX_TRANSPORT": transport, **settings,
            }  # fmt: skip
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, "-P", "-c", PRELUDE + textwrap.dedent(text)], env=env, cwd="/",
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                )
            )  # fmt: skip
        self._heard = [b""] * size

    def __enter__(self) -> Ranks:
        try:
            for rank in range(len(self.processes)):
                heard = self.hear(rank, 120)
                assert heard == "met", f"rank {rank} said {heard!r}"
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                assert stream
                stream.close()

    def hear(self, rank: int, limit: float = 12.0) -> str:
        """Return the next line that a rank says. Fails with its stderr when it ends or is silent for `limit` seconds."""
        stdout = self.processes[rank].stdout
        assert stdout
        end = time.monotonic() + limit
        while b"\n" not in self._heard[rank]:
            ready, _, _ = select.select([stdout], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                raise AssertionError(f"rank {rank} said nothing for {limit} s")
            data = os.read(stdout.fileno(), 65536)
            if not data:
                stderr = self.processes[rank].stderr
                assert stderr
                raise AssertionError(f"rank {rank} ended: {stderr.read().decode(errors='replace')}")
            self._heard[rank] += data
        line, _, self._heard[rank] = self._heard[rank].partition(b"\n")
        return line.decode()

    def expect(self, rank: int, *words: str) -> None:
        """The next lines of a rank are `words`."""
        for word in words:
            heard = self.hear(rank)
            assert heard == word, f"rank {rank} said {heard!r}, not {word!r}"

    def tell(self, rank: int, word: str = "go") -> None:
        """Answer a rank's listen()."""
        stdin = self.processes[rank].stdin
        assert stdin
        stdin.write(word.encode() + b"\n")
        stdin.flush()

    def kill(self, rank: int) -> None:
        """SIGKILL a rank, and reap it."""
        self.processes[rank].kill()
        self.processes[rank].wait()

    def finish(self, *ranks: int, code: int = 0) -> None:
        """These ranks end by themselves with `code` and said nothing on stderr."""
        for rank in ranks:
            process = self.processes[rank]
            try:
                returned = process.wait(20)
            except subprocess.TimeoutExpired:
                raise AssertionError(f"rank {rank} does not end") from None
            assert process.stderr
            stderr = process.stderr.read().decode(errors="replace")
            assert (returned, stderr) == (code, ""), f"rank {rank} ended with {returned}:\n{stderr}"
