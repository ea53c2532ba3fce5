"""tcp links that are cut, and strangers that talk to its port."""

from __future__ import annotations

import os
import secrets
import socket
import threading
from pathlib import Path

from fault_support import Ranks

# finds this process's established connections, other than stdin, stdout and the bootstrap's
LINKS = """
def links():
    found = {}
    for entry in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{entry}").startswith("socket:"):
                continue
            s = socket.socket(fileno=os.dup(int(entry)))
            if s.family == socket.AF_INET and s.type == socket.SOCK_STREAM:
                try:
                    found[int(entry)] = (s, s.getsockname(), s.getpeername())
                    continue
                except OSError:
                    pass
            s.close()
        except OSError:
            pass
    return found
bootstrap = int(os.environ["MASTER_PORT"])
def peers():
    return [s for s, mine, theirs in links().values() if bootstrap not in (mine[1], theirs[1])]
"""


def program(text: str) -> str:
    import textwrap

    return LINKS + textwrap.dedent(text)


def test_a_cut_link_raises_and_other_peers_go_on() -> None:
    """Rank 0 cuts its link to rank 1 only (found by trying: the one on which rank 1 is), then talks to rank 2."""
    text = program("""
    if rank == 0:
        ports = set(comm.recv(source=1))
        common = [s for s in peers() if {s.getsockname()[1], s.getpeername()[1]} <= ports]
        assert len(common) >= 1, ports
        request = comm.Irecv(np.zeros(1), 1, 5)
        for s in common:
            s.shutdown(socket.SHUT_RDWR)
        seconds, message = failed(request.Wait)
        assert seconds < 1 and "rank 1" in message, (seconds, message)
        failed(lambda: comm.Send(np.zeros(4 << 20), 1, 5))
        say("raised")
        comm.Sendrecv(np.zeros(70000), 2, 6, np.zeros(70000), 2, 6)
    elif rank == 1:
        comm.send([p for s in peers() for p in (s.getsockname()[1], s.getpeername()[1])], 0)
        seconds, message = failed(lambda: comm.Recv(np.zeros(1), 0, 5))
        assert "rank 0" in message, message
        say("raised")
        comm.Sendrecv(np.zeros(70000), 2, 7, np.zeros(70000), 2, 7)
    else:
        comm.Sendrecv(np.zeros(70000), 0, 6, np.zeros(70000), 0, 6)
        comm.Sendrecv(np.zeros(70000), 1, 7, np.zeros(70000), 1, 7)
    say("fine")
    """)
    with Ranks(3, "tcp", text) as job:
        job.expect(0, "raised")
        job.expect(1, "raised")
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
