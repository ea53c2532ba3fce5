"""Signals and time limits inside blocking calls."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest

from pympx import MPI


def asleep() -> bool:
    """Whether the main thread of this process sleeps in the kernel, without the help of the GIL's owner."""
    with open(f"/proc/{os.getpid()}/task/{os.getpid()}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "S"


def interrupt_when_asleep() -> threading.Thread:
    def watch() -> None:
        seen = 0
        while seen < 20:
            seen = seen + 1 if asleep() else 0
            time.sleep(0.002)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


CALLS = ["Recv", "recv", "wildcard", "Wait", "Probe", "Ssend", "Barrier", "Waitany", "Send"]


@pytest.mark.ranks(2)
@pytest.mark.parametrize("call", CALLS)
def test_ctrl_c_ends_a_blocking_call(comm: Any, call: str) -> None:
    """KeyboardInterrupt within a second; the rank goes on and communicates."""
    comm.Barrier()  # the start is over: a rank that Ctrl-C meets while ranks find each other does not go on
    if call == "Barrier":
        comm = comm.Dup()  # its collectives are out of step afterwards
    if comm.rank == 0:
        buffer = np.zeros(1000)
        old = signal.signal(signal.SIGINT, signal.default_int_handler)
        thread = interrupt_when_asleep()
        started = time.monotonic()
        try:
            with pytest.raises(KeyboardInterrupt):
                if call == "Recv":
                    comm.Recv(buffer, 1, 5)
                elif call == "recv":
                    comm.recv(source=1, tag=5)
                elif call == "wildcard":
                    comm.Recv(buffer, MPI.ANY_SOURCE, 5)
                elif call == "Wait":
                    comm.Irecv(buffer, 1, 5).Wait()
                elif call == "Waitany":
                    MPI.Request.Waitany([comm.Irecv(buffer, 1, 5), comm.Irecv(buffer, 1, 6)])
                elif call == "Probe":
                    comm.Probe(1, 5)
                elif call == "Ssend":
                    comm.Ssend(buffer, 1, 5)
                elif call == "Send":
                    comm.Send(np.full(4 << 20, 3, np.uint8), 1, 5)
                else:
                    comm.Barrier()
        finally:
            thread.join()
            signal.signal(signal.SIGINT, old)
        assert time.monotonic() - started < 5
        comm.Send(b"go on", 1, 1)
        got = np.zeros(3)
        comm.Recv(got, 1, 2)
        assert list(got) == [1, 2, 3] and not buffer.any()
    else:
        comm.Recv(bytearray(5), 0, 1)
        if call == "Ssend":
            comm.Recv(np.zeros(1000), 0, 5)  # the message itself was not lost
        if call == "Send":
            got = np.zeros(4 << 20, np.uint8)
            comm.Recv(got, 0, 5)
            assert (got == 3).all()
        comm.Send(np.array([1.0, 2, 3]), 0, 2)


@pytest.mark.ranks(2)
def test_memory_of_an_interrupted_collective_stays_held(comm: Any) -> None:
    """The schedule goes on and writes there: the bytearray cannot be resized until it is over."""
    comm.Barrier()
    comm = comm.Dup()  # its collectives are out of step afterwards
    if comm.rank == 0:
        buffer = bytearray(100_000)
        old = signal.signal(signal.SIGINT, signal.default_int_handler)
        thread = interrupt_when_asleep()
        try:
            with pytest.raises(KeyboardInterrupt):
                comm.Bcast(buffer, root=1)
        finally:
            thread.join()
            signal.signal(signal.SIGINT, old)
        with pytest.raises(BufferError):
            buffer.append(0)
        comm.send(None, 1)
        comm.recv(source=1)
        while True:  # the broadcast's own messages came before, but need progress to complete
            comm.Iprobe(1)
            comm.isend(None, MPI.PROC_NULL).wait()
            try:
                buffer.append(0)
                break
            except BufferError:
                continue
        assert buffer == b"x" * 100_000 + b"\0"
    else:
        comm.recv(source=0)
        comm.Bcast(bytearray(b"x" * 100_000), root=1)
        comm.send(None, 0)


@pytest.mark.ranks(2)
def test_a_handler_that_returns_lets_the_call_go_on(comm: Any) -> None:
    if comm.rank == 0:
        calls: list[int] = []

        def handler(number: int, frame: Any) -> None:
            calls.append(number)
            comm.Send(b"x", 1, 3)  # handlers may communicate

        old = signal.signal(signal.SIGUSR1, handler)
        try:
            killer = threading.Thread(target=lambda: os.kill(os.getpid(), signal.SIGUSR1))
            killer.start()
            got = bytearray(2)
            comm.Recv(got, 1, 4)
            killer.join()
        finally:
            signal.signal(signal.SIGUSR1, old)
        assert calls == [signal.SIGUSR1] and got == b"ok"
    else:
        comm.Recv(bytearray(1), 0, 3)
        comm.Send(b"ok", 0, 4)


PROGRAM = """
import sys, time
import numpy as np
from pympx import MPI
comm = MPI.COMM_WORLD
calls = {
    "Recv": lambda: comm.Recv(np.zeros(1), 1 - comm.rank, 5),
    "recv": lambda: comm.recv(source=MPI.ANY_SOURCE, tag=5),
    "Probe": lambda: comm.Probe(1 - comm.rank, 5),
    "Wait": lambda: comm.Irecv(np.zeros(1), 1 - comm.rank, 5).Wait(),
    "Waitany": lambda: MPI.Request.Waitany([comm.Irecv(np.zeros(1), 1 - comm.rank, 6)]),
    "Ssend": lambda: comm.Ssend(b"x", 1 - comm.rank, 9),
}
for name, call in calls.items():
    start = time.monotonic()
    try:
        call()
    except MPI.Exception as error:
        spent = time.monotonic() - start
        assert 1 <= spent < 2.5, spent
        assert "PYMPX_TIMEOUT = 1 s" in str(error), error
        assert error.Get_error_class() == MPI.ERR_OTHER
    else:
        raise SystemExit(f"{name} did not raise")
    got = np.zeros(3)
    comm.Sendrecv(np.full(3, float(comm.rank)), 1 - comm.rank, 1, got, 1 - comm.rank, 1)
    assert (got == 1 - comm.rank).all()
    if name == "Ssend":
        comm.Recv(bytearray(1), 1 - comm.rank, 9)
print("fine")
"""


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_time_limit(transport: str, tmp_path: Any) -> None:
    program = tmp_path / "limit.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pympx", "run", "-n", "2", str(program)],
        env={**os.environ, "PYMPX_TIMEOUT": "1", "PYMPX_TRANSPORT": transport}, capture_output=True, text=True, timeout=60, check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["fine", "fine"]
