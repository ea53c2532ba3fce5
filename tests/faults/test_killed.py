"""SIGKILL of a rank: what waits for it raises ERR_PROC_FAILED naming it within a second; what had arrived stays."""

from __future__ import annotations

import os
import signal
import time

import pytest
from fault_support import Ranks

CALLS = {
    "Recv": "comm.Recv(np.zeros(1), 1, 5)",
    "recv": "comm.recv(source=1)",
    "wildcard": "comm.Recv(np.zeros(1), MPI.ANY_SOURCE, 5)",
    "Send large": "comm.Send(np.zeros(4 << 20), 1, 5)",
    "Ssend": "comm.Ssend(b'x', 1, 5)",
    "Probe": "comm.Probe(1, 5)",
    "wildcard Probe": "comm.Probe()",
    "Irecv": "comm.Irecv(np.zeros(1), 1, 5).Wait()",
    "Waitany": "MPI.Request.Waitany([comm.Irecv(np.zeros(1), 1, 5), comm.Irecv(np.zeros(1), 1, 6)])",
    "Barrier": "comm.Barrier()",
}
LIMIT = 1.0


@pytest.mark.parametrize("call", CALLS)
def test_a_pending_call_raises(transport: str, call: str) -> None:
    text = f"""
    if rank == 0:
        soon_asleep()
        seconds, message = failed(lambda: {CALLS[call]})
        say(f"{{time.monotonic()}} {{message}}")
        again, message = failed(lambda: comm.Recv(np.zeros(1), 1, 77))  # later calls raise at once
        assert again < 0.5, again
        say("fine")
    else:
        say("up")
        listen()
    """
    with Ranks(2, transport, text) as job:
        job.expect(1, "up")
        job.expect(0, "asleep")
        job.kill(1)
        killed = time.monotonic()
        at, _, message = job.hear(0).partition(" ")
        assert float(at) - killed < LIMIT, f"it took {float(at) - killed:.2f} s"
        assert "rank 1" in message, message
        job.expect(0, "fine")
        job.finish(0)


def test_all_survivors_learn_and_go_on(transport: str) -> None:
    """4 ranks in a Barrier, one dies; each survivor raises, then the three communicate."""
    text = """
    if rank == 2:
        say("up")
        listen()
    soon_asleep()
    seconds, message = failed(comm.Barrier)
    say(f"{time.monotonic()} {message}")
    listen()
    for peer in (0, 1, 3):
        if peer != rank:
            got = np.zeros(50000)
            comm.Sendrecv(np.full(50000, float(rank)), peer, 9, got, peer, 9)
            assert (got == peer).all()
    say("fine")
    """
    with Ranks(4, transport, text) as job:
        job.expect(2, "up")
        for rank in (0, 1, 3):
            job.expect(rank, "asleep")
        job.kill(2)
        killed = time.monotonic()
        first = []
        # dissemination: a rank that does not wait for rank 2 itself waits for one that failed; who raised tells nobody else yet
        for rank in (0, 1, 3):
            try:
                first.append((rank, job.hear(rank, 3)))
            except AssertionError:
                first.append((rank, ""))
        assert all(line for _, line in first), f"ranks that still wait: {[rank for rank, line in first if not line]}"
        for rank, line in first:
            at, _, message = line.partition(" ")
            assert float(at) - killed < LIMIT and "rank 2" in message, (rank, line)
        for rank in (0, 1, 3):
            job.tell(rank)
        for rank in (0, 1, 3):
            job.expect(rank, "fine")
        job.finish(0, 1, 3)


def test_what_had_arrived_stays_receivable(transport: str) -> None:
    text = """
    if rank == 1:
        for i in range(20):
            comm.Send(np.full(200, i), 0, i % 3)
        comm.Send(b"last", 0, 9)
        say("sent")
        listen()
    comm.Probe(1, 9)  # in order: all are here
    say("probed")
    listen()
    seconds, message = failed(lambda: comm.Recv(np.zeros(1), 1, 50))
    assert "rank 1" in message, message
    got = np.zeros(200, int)
    for i in range(20):
        comm.Recv(got, 1, i % 3)
        assert (got == i).all()
    last = bytearray(4)
    comm.Recv(last, MPI.ANY_SOURCE, 9)
    assert last == b"last"
    failed(lambda: comm.Recv(got, 1))
    failed(lambda: comm.Recv(got, MPI.ANY_SOURCE))
    failed(lambda: comm.Send(np.zeros(1000), 1))
    say("fine")
    """
    with Ranks(2, transport, text) as job:
        job.expect(1, "sent")
        job.expect(0, "probed")
        job.kill(1)
        job.tell(0)
        job.expect(0, "fine")
        job.finish(0)


def test_a_large_message_whose_sender_died_raises(transport: str) -> None:
    """Only its announcement arrived."""
    text = """
    if rank == 1:
        request = comm.Isend(np.zeros(4 << 20), 0, 4)
        comm.Send(b"x", 0, 5)
        say("sent")
        listen()
    comm.Recv(bytearray(1), 1, 5)
    say("announced")
    listen()
    seconds, message = failed(lambda: comm.Recv(np.zeros(4 << 20), 1, 4))
    assert "rank 1" in message, message
    say("fine")
    """
    with Ranks(2, transport, text) as job:
        job.expect(1, "sent")
        job.expect(0, "announced")
        job.kill(1)
        job.tell(0)
        job.expect(0, "fine")
        job.finish(0)


def test_killed_while_streaming(transport: str) -> None:
    """In the middle of many large messages both ways."""
    text = """
    big = np.zeros(8 << 20, np.uint8)
    got = np.zeros(8 << 20, np.uint8)
    def stream():
        for turn in range(10**6):
            comm.Sendrecv(big, 1 - rank, 1, got, 1 - rank, 1)
            if turn == 3:
                say("streaming")
    if rank:
        stream()
    seconds, message = failed(stream)
    assert "rank 1" in message, message
    say("raised")
    """
    with Ranks(2, transport, text) as job:
        job.expect(0, "streaming")
        job.expect(1, "streaming")
        job.kill(1)
        killed = time.monotonic()
        job.expect(0, "raised")
        assert time.monotonic() - killed < LIMIT
        job.finish(0)


def test_a_receive_of_another_rank_is_not_disturbed(transport: str) -> None:
    text = """
    if rank == 1:
        say("up")
        listen()
    if rank == 0:
        request = comm.Irecv(np.zeros(1), 2, 5)
        failed(lambda: comm.Recv(np.zeros(1), 1, 5))
        assert not request.Test()
        say("raised")
        request.Wait()
    else:
        listen()
        comm.Send(np.ones(1), 0, 5)
    say("fine")
    """
    with Ranks(3, transport, text) as job:
        job.expect(1, "up")
        job.kill(1)
        job.expect(0, "raised")
        job.tell(2)
        job.expect(0, "fine")
        job.expect(2, "fine")
        job.finish(0, 2)


def test_a_living_child_does_not_hide_its_parents_death(transport: str) -> None:
    """The forked child of a rank holds none of its sockets: the rank's death shows although the child lives on."""
    text = """
    if rank == 0:
        soon_asleep()
        seconds, message = failed(lambda: comm.Recv(np.zeros(1), 1, 5))
        say(f"{time.monotonic()} {message}")
    else:
        pid = os.fork()
        if pid == 0:
            for fd in range(3):
                os.close(fd)
            while True:
                time.sleep(10)
        say(str(pid))
        listen()
    """
    with Ranks(2, transport, text) as job:
        child = int(job.hear(1))
        try:
            job.expect(0, "asleep")
            job.kill(1)
            killed = time.monotonic()
            at, _, message = job.hear(0).partition(" ")
            assert float(at) - killed < LIMIT, f"it took {float(at) - killed:.2f} s"
            assert "rank 1" in message, message
            job.finish(0)
        finally:
            os.kill(child, signal.SIGKILL)
