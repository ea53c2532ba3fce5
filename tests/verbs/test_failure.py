"""A peer over verbs is killed: nothing tells the card, yet who waits for it and who sends to it learn it within 2 s."""

from __future__ import annotations

import time
from typing import Any

import pytest
from fault_support import Ranks

LIMIT_S = 2.0
WAITS = {
    "receives": "comm.Recv(np.zeros(1), 1, 5)",
    "receives from anybody": "comm.Recv(np.zeros(1), MPI.ANY_SOURCE, 5)",
    "sends": "[comm.Ssend(np.zeros(100000), 1, 5) for _ in range(1000)]",
}


@pytest.mark.parametrize("waits", WAITS)
def test_a_killed_peer_is_noticed(waits: str, record: Any) -> None:
    text = f"""
    if rank == 1:
        say("up")
        time.sleep(600)
    if {waits == "sends"}:
        say("up")
        listen()
    else:
        soon_asleep()
    seconds, message = failed(lambda: {WAITS[waits]})
    assert "rank 1" in message, message
    say(f"{{time.monotonic()}}")
    shrunk = comm.Shrink()
    assert shrunk.allreduce(1) == 2
    """
    with Ranks(3, "verbs", text) as job:
        for rank in range(3):
            assert job.hear(rank, 120) == ("up" if rank == 1 or waits == "sends" else "asleep")
        job.kill(1)
        killed = time.monotonic()
        if waits == "sends":
            for rank in (0, 2):
                job.tell(rank)
        noticed = [float(job.hear(rank, 60)) - killed for rank in (0, 2)]
        job.finish(0, 2)
    record({"waits": waits, "noticed_s": [round(s, 3) for s in noticed]})
    assert max(noticed) < LIMIT_S
