"""tcp links that are cut, and strangers that talk to its port."""

from __future__ import annotations

import os
import secrets
import socket
import threading
from pathlib import Path
from textwrap import dedent

from fault_support import Ranks

BESIDE = f"import sys; sys.path.append({str(Path(__file__).parent)!r})\n"  # so that ranks can import what is here


def test_a_cut_link_heals() -> None:
    """Rank 0 cuts its links in the middle of receives, then nothing is lost; a Barrier and a large message go through; both count it."""
    text = """
    from cutting import sockets
    from pympx.bindings import runtime
    if rank == 0:
        receives = [comm.Irecv(np.zeros(n), 1, 5) for n in (1, 1000, 100000)]
        cut = 0
        for s in sockets():
            try:
                if bootstrap not in (s.getsockname()[1], s.getpeername()[1]):
                    s.shutdown(socket.SHUT_RDWR)
                    cut += 1
            except OSError:
                pass
            s.close()
        assert cut == 2, cut
        start = time.monotonic()
        comm.Send(np.zeros(1), 1, 6)
        MPI.Request.Waitall(receives)
        assert time.monotonic() - start < 2
    elif rank == 1:
        comm.Recv(np.zeros(1), 0, 6)
        for n in (1, 1000, 100000):
            comm.Send(np.zeros(n), 0, 5)
    comm.Barrier()
    for peer in range(size):
        if peer != rank:
            got = np.zeros(70000)
            comm.Sendrecv(np.full(70000, float(rank)), peer, 7, got, peer, 7)
            assert (got == peer).all()
    for peer in range(size):
        counted = runtime.link_counters(peer)
        assert counted["cuts"] == counted["reconnects"] == (peer != rank and 0 in (peer, rank)), counted
    say("fine")
    """
    text = BESIDE + 'bootstrap = int(os.environ["MASTER_PORT"])\n' + dedent(text)
    with Ranks(3, "tcp", text) as job:
        for rank in range(3):
            job.expect(rank, "fine")
        job.finish(0, 1, 2)


def test_cut_in_the_farewell() -> None:
    """What was sent last arrives though the links are cut while everybody leaves, and all end in order."""
    text = """
    from cutting import Cutter
    cutter = Cutter(comm, "shutdown", 0.001, rank)
    cutter.start()
    for peer in range(size):
        if peer != rank:
            comm.Isend(np.full(5000, float(rank)), peer, 8)
    got = np.zeros(5000)
    for peer in range(size):
        if peer != rank:
            comm.Recv(got, peer, 8)
            assert (got == peer).all()
    MPI.Finalize()
    cutter.stop()
    say("fine")
    """
    text = BESIDE + dedent(text)
    for _ in range(3):
        with Ranks(3, "tcp", text) as job:
            for rank in range(3):
                job.expect(rank, "fine")
            job.finish(0, 1, 2)


def listening(pid: int) -> list[tuple[str, int]]:
    """Return the IPv4 addresses on which a process listens."""
    inodes = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(entry)
        except OSError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    found = []
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and fields[9] in inodes:
            address, _, port = fields[1].partition(":")
            found.append((socket.inet_ntoa(bytes.fromhex(address)[::-1]), int(port, 16)))
    return found


def test_strangers_do_no_harm() -> None:
    """While two ranks exchange data, others connect to their ports: silent, with garbage, with half a greeting, in number."""
    text = """
    say("up")
    listen()
    for turn in range(300):
        n = 200000 if turn % 10 == 0 else 100
        got = np.zeros(n, np.int32)
        comm.Sendrecv(np.full(n, turn * 2 + rank, np.int32), 1 - rank, 1, got, 1 - rank, 1)
        assert (got == turn * 2 + 1 - rank).all()
    say("fine")
    """
    with Ranks(2, "tcp", text) as job:
        job.expect(0, "up")
        job.expect(1, "up")
        places = [place for process in job.processes for place in listening(process.pid)]
        assert places, "the ranks listen nowhere"
        over = threading.Event()
        reached = 0

        def bother(kind: int) -> None:
            nonlocal reached
            kept: list[socket.socket] = []
            while not over.is_set() and len(kept) < 200:
                for place in places:
                    try:
                        s = socket.create_connection(place, 1)
                    except OSError:
                        continue
                    reached += 1
                    try:
                        if kind == 0:
                            s.sendall(secrets.token_bytes(5000))
                        elif kind == 1:
                            s.sendall(b"GET / HTTP/1.1\r\n\r\n")
                        else:
                            kept.append(s)
                            continue
                    except OSError:
                        pass
                    s.close()
            for s in kept:
                s.close()

        threads = [threading.Thread(target=bother, args=(kind,)) for kind in range(3)]
        for thread in threads:
            thread.start()
        try:
            job.tell(0)
            job.tell(1)
            job.expect(0, "fine")
            job.expect(1, "fine")
        finally:
            over.set()
            for thread in threads:
                thread.join()
        assert reached > 10
        job.finish(0, 1)
