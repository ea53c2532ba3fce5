"""A rank that leaves in order while others wait for it makes their calls raise; one that is stopped does not."""

from __future__ import annotations

import signal
import time

import pytest
from fault_support import Ranks

CALLS = {
    "Recv": "comm.Recv(np.zeros(1), 1, 5)",
    "wildcard": "comm.Recv(np.zeros(1), MPI.ANY_SOURCE, 5)",
    "Probe": "comm.Probe(1, 5)",
    "wildcard Probe": "comm.Probe()",
    "Barrier": "comm.Barrier()",
    "Ssend": "comm.Ssend(b'x', 1, 5)",
    "Send large": "comm.Send(np.zeros(4 << 20), 1, 5)",
}


@pytest.mark.parametrize("call", CALLS)
def test_left_while_others_wait(transport: str, call: str) -> None:
    text = f"""
    if rank == 0:
        soon_asleep()
        seconds, message = failed(lambda: {CALLS[call]})
        assert "rank 1" in message, message
        say("raised")
    else:
        say("up")
        listen()
    """
    with Ranks(2, transport, text) as job:
        job.expect(1, "up")
        job.expect(0, "asleep")
        job.tell(1)
        began = time.monotonic()
        job.expect(0, "raised")
        assert time.monotonic() - began < 2
        job.finish(0, 1)


@pytest.mark.parametrize("call", CALLS)
def test_calls_after_it_left(transport: str, call: str) -> None:
    text = f"""
    if rank == 0:
        try:
            comm.Recv(np.zeros(1), 1, 99)
        except MPI.Exception:
            pass
        seconds, message = failed(lambda: {CALLS[call]})
        assert "rank 1" in message, message
        assert seconds < 1, seconds
        say("raised")
    """
    with Ranks(2, transport, text) as job:
        job.expect(0, "raised")
        job.finish(0, 1)


def test_messages_of_a_rank_that_left_stay(transport: str) -> None:
    text = """
    if rank == 1:
        for i in range(10):
            comm.Send(np.full(300, i), 0, i)
    else:
        failed(lambda: comm.Recv(np.zeros(300, int), 1, 99))
        got = np.zeros(300, int)
        for i in reversed(range(10)):
            comm.Recv(got, 1, i)
            assert (got == i).all()
        say("fine")
    """
    with Ranks(2, transport, text) as job:
        job.expect(0, "fine")
        job.finish(0, 1)


def test_a_stopped_rank_is_waited_for(transport: str) -> None:
    """SIGSTOP for 4 s, in the middle of traffic, then SIGCONT: everything completes."""
    text = """
    def stream(turns):
        for turn in range(turns):
            for n in (1, 3000, 300000):
                got = np.zeros(n, np.int32)
                comm.Sendrecv(np.full(n, turn + rank, np.int32), 1 - rank, 1, got, 1 - rank, 1)
                assert (got == turn + 1 - rank).all()
    stream(10)
    say("streaming")
    stream(400)
    say("fine")
    """
    with Ranks(2, transport, text) as job:
        job.expect(0, "streaming")
        job.expect(1, "streaming")
        job.processes[1].send_signal(signal.SIGSTOP)
        time.sleep(4)  # the scenario
        assert job.processes[0].poll() is None
        job.processes[1].send_signal(signal.SIGCONT)
        job.expect(0, "fine")
        job.expect(1, "fine")
        job.finish(0, 1)


def test_an_unhandled_exception_ends_the_rank_and_is_noticed(transport: str) -> None:
    text = """
    if rank == 1:
        sys.stderr = open(os.devnull, "w")
        raise ValueError("on purpose")
    try:
        failed(lambda: comm.Recv(np.zeros(1), 1, 5))
    finally:
        say("finally")
    """
    with Ranks(2, transport, text) as job:
        job.expect(0, "finally")
        job.finish(0)
        job.processes[1].wait(20)
        assert job.processes[1].returncode != 0
