"""Random traffic over verbs, 2 + 2 ranks on two devices: whole, in order, once; also while the wire is taken down and up."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import guest
import pytest

PROGRAM = str(Path(__file__).with_name("rounds_program.py"))
DOUBLED = str(Path(__file__).with_name("doubled_program.py"))
ROUNDS = 40 if guest.LONG else 5
SETTINGS = {"PYMPX_VERBS_TIMEOUT": "11", "PYMPX_VERBS_RETRIES": "3"}  # a link is given up soon
CUTS = 100


@pytest.mark.parametrize(("ranks", "devices"), [(2, 1), (4, 2)])
def test_every_message_arrives_in_order(ranks: int, devices: int, record: Any) -> None:
    done = guest.run(ranks, PROGRAM, str(guest.SEED), str(ROUNDS), devices=devices, timeout=900)
    counts = json.loads(done.stdout)
    record(counts | {"ranks": ranks, "devices": devices})
    assert counts["cuts"] == 0
    assert counts["verbs_bytes"] > 100_000


@pytest.mark.skipif(not guest.LONG or platform.release().startswith("6.1."), reason="long; soft-RoCE of Linux 6.1 may lock the guest up")
def test_nothing_is_lost_when_the_wire_goes_down_and_up(record: Any) -> None:
    done = guest.run(4, PROGRAM, str(guest.SEED), "--cut", str(CUTS), timeout=1800, settings=SETTINGS)
    counts = json.loads(done.stdout)
    record(counts)
    assert counts["cuts_made"] >= CUTS
    assert counts["reconnects"] > CUTS / 2


def test_a_message_that_a_card_sends_twice_ends_its_link_and_nothing_is_lost(record: Any) -> None:
    done = guest.run(2, DOUBLED, timeout=60)
    counts = json.loads(done.stdout)
    record(counts)
    assert counts["reconnects"] >= 5
