"""Large messages over verbs are not copied; children that fork does not change what the parent transfers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import guest

HERE = Path(__file__).resolve().parent


def test_nothing_large_is_copied(record: Any) -> None:
    """Between Send and Recv of 1 MiB there is no memcpy of more than 4 KiB; of messages below the threshold there is: so it is counted."""
    done = guest.run(2, str(HERE / "copies_program.py"), settings={"LD_PRELOAD": str(guest.NATIVE / "verbs" / "copies.so")})
    counts = json.loads(done.stdout)
    record(counts)
    for rank in counts["ranks"]:
        assert rank["1 MiB"] == 0
        assert rank["8000 bytes"] >= counts["times"]


def test_children_change_nothing() -> None:
    guest.run(2, str(HERE / "fork_program.py"))
