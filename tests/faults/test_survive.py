"""Programs that survive: random ranks are killed, the others learn it within a second, agree, shrink and go on with the right result."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fault_support import Ranks

SEED = int(os.environ.get("PYMPX_TEST_SEED", "1"))
ROUNDS = 100 if os.environ.get("PYMPX_TEST_LONG") == "1" else 10
SIZE = 5

SURVIVOR = """
say("up")
listen()
while True:
    try:
        comm.Barrier()
    except MPI.Exception as error:
        assert error.Get_error_class() == MPI.ERR_PROC_FAILED, error
        say(f"{time.monotonic()} {error}")
        break
while True:
    comm = comm.Shrink()
    try:
        total = comm.allreduce(1 << rank)
        good = 1
    except MPI.Exception:
        comm.Revoke()
        good = 0
    try:
        good = comm.Agree(good)
    except MPI.Exception as error:
        assert error.Get_error_class() == MPI.ERR_PROC_FAILED, error
        good = 0
    if good:
        break
say(f"{total} {comm.size} {comm.Get_group().Translate_ranks(range(comm.size), MPI.COMM_WORLD.Get_group())}")
"""


def test_the_rest_goes_on_with_the_right_sum(transport: str, record: Callable[[dict[str, Any]], None]) -> None:
    """One victim, rank 0 included, and in every other round a second one while the rest is agreeing."""
    draw = random.Random(SEED)
    print(f"seed {SEED}, {ROUNDS} rounds")
    slowest = 0.0
    for number in range(ROUNDS):
        victims = draw.sample(range(SIZE), 1 + number % 2)
        living = [rank for rank in range(SIZE) if rank not in victims]
        with Ranks(SIZE, transport, SURVIVOR) as job:
            for rank in range(SIZE):
                job.expect(rank, "up")
            for rank in range(SIZE):
                job.tell(rank)
            killed = 0.0
            for victim in victims:
                time.sleep(draw.uniform(0, 0.02))  # wherever they are by then
                job.processes[victim].kill()
                killed = killed or time.monotonic()
            for rank in living:
                at, _, message = job.hear(rank).partition(" ")
                slowest = max(slowest, float(at) - killed)
                assert float(at) - killed < 1, f"round {number}: rank {rank} noticed after {float(at) - killed:.2f} s"
                assert any(f"rank {victim}" in message for victim in victims), message
            # The second victim may have done its part before.
            right = [_result(living), _result(sorted([*living, victims[-1]]))] if len(victims) == 2 else [_result(living)]
            heard = {job.hear(rank) for rank in living}
            assert len(heard) == 1 and heard.pop() in right, f"round {number}, victims {victims}: {heard}"
            job.finish(*living)
    record({"seed": SEED, "rounds": ROUNDS, "slowest_notice_s": round(slowest, 3)})


def _result(ranks: list[int]) -> str:
    return f"{sum(1 << rank for rank in ranks)} {len(ranks)} {ranks}"


def test_wildcards_go_on_after_acknowledgement(transport: str) -> None:
    text = """
    if rank == 2:
        say("up")
        listen()
    seconds, message = failed(lambda: comm.Recv(np.zeros(1), MPI.ANY_SOURCE, 5)) if rank == 0 else (0, "")
    if rank == 0:
        assert "rank 2" in message
        failed(lambda: comm.Recv(np.zeros(1), MPI.ANY_SOURCE, 5))  # still unacknowledged
        assert comm.Get_failed().Get_size() == 1
        assert comm.Ack_failed(0) == 0
        failed(lambda: comm.Agree(1))
        assert comm.Ack_failed() == 1
        say("acknowledged")
        got = np.zeros(1)
        comm.Recv(got, MPI.ANY_SOURCE, 5)
        assert got[0] == 7
        failed(lambda: comm.Agree(3))  # rank 1 has not acknowledged
        assert comm.Agree(6) == 2
        say("fine")
    else:
        failed(lambda: comm.Agree(1))
        listen()
        comm.Send(np.full(1, 7.0), 0, 5)
        failed(lambda: comm.Agree(3))
        assert comm.Ack_failed() == 1
        assert comm.Agree(3) == 2
    """
    with Ranks(3, transport, text) as job:
        job.expect(2, "up")
        job.kill(2)
        job.expect(0, "acknowledged")
        job.tell(1)
        job.expect(0, "fine")
        job.finish(0, 1)


def test_revoke_ends_what_others_wait_for(transport: str) -> None:
    """Also those who never heard of the failure: they wait for a rank that lives but has given up."""
    text = """
    calls = {1: lambda: dup.Recv(np.zeros(1), 0, 5), 2: dup_barrier, 3: lambda: dup.Probe(0, 5), 4: lambda: dup.Ssend(b"x", 0, 5)}
    if rank == 0:
        say("ready")
        listen()
        dup.Revoke()
        assert dup.Is_revoked()
    else:
        soon_asleep()
        try:
            calls[rank]()
            assert rank == 4  # a send may end well: its message is dropped
        except MPI.Exception as error:
            assert error.Get_error_class() == MPI.ERR_REVOKED, error
    for call in (dup.Barrier, lambda: dup.Send(b"", 0), lambda: dup.Recv(bytearray(1), MPI.ANY_SOURCE), lambda: dup.Iprobe()):
        try:
            while True:
                call()  # a rank may not know yet
        except MPI.Exception as error:
            assert error.Get_error_class() == MPI.ERR_REVOKED, error
    assert comm.allreduce(1) == size  # other communicators go on
    shrunk = dup.Shrink()
    assert shrunk.allreduce(1) == size
    dup.Free()
    """
    with Ranks(5, transport, "dup = comm.Dup()\ndef dup_barrier(): dup.Barrier()\n" + _dedent(text)) as job:
        job.expect(0, "ready")
        for rank in range(1, 5):
            job.expect(rank, "asleep")
        job.tell(0)
        job.finish(*range(5))


def _dedent(text: str) -> str:
    return "\n".join(line[4:] for line in text.splitlines())


KEEPS_GOING = """
import os, signal, sys
from pympx import MPI
comm = MPI.COMM_WORLD
try:
    while True:
        comm.Barrier()
        if comm.rank == 0:
            os.kill(os.getpid(), signal.SIGKILL)
except MPI.Exception as error:
    assert error.Get_error_class() == MPI.ERR_PROC_FAILED
rest = comm.Shrink()
print(rest.allreduce(comm.rank), flush=True)
sys.exit(int(sys.argv[1]) if comm.rank == 2 else 0)
"""


@pytest.mark.parametrize(("keep_going", "code"), [(True, 0), (True, 3), (False, 0)])
def test_the_launcher_lets_the_rest_go_on(transport: str, tmp_path: Path, keep_going: bool, code: int) -> None:
    """Rank 0 dies. With --keep-going the others end well, whatever code one of them leaves with; else they are ended."""
    program = tmp_path / "program.py"
    program.write_text(KEEPS_GOING)
    option = ["--keep-going"] if keep_going else []
    command = [sys.executable, "-P", "-m", "pympx", "run", "-n", "4", *option, str(program), str(code)]
    env = os.environ | {"PYMPX_TRANSPORT": transport}
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    if not keep_going:
        assert done.returncode == 137
        assert done.stderr.endswith("the other ranks were ended\n")
        return
    said = ["pympx run: rank 0 was killed by signal 9 (SIGKILL); the others go on"]
    said += ["pympx run: rank 2 exited with code 3; the others go on"] * (code == 3)
    assert (done.returncode, done.stdout.split(), done.stderr.splitlines()) == (0, ["6"] * 3, said)
