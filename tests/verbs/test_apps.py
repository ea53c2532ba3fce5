"""heat, EP, CG and IS verify over verbs; their bytes go over it, over the wire where ranks are on two devices; registrations are kept."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import guest
import pytest
from apps_harness import Finished, check_traffic, check_verified

HEAT, NPB = "apps/heat/heat.py", "apps/npb/npb.py"
PROGRAMS = {
    "heat": [HEAT, "--size", "31"],
    "ep": [NPB, "ep", "--class", "S"],
    "cg": [NPB, "cg", "--class", "S"],
    "is": [NPB, "is", "--class", "S"],
}
#: what of them the short form leaves to the test of registrations
LEFT = [] if guest.LONG else ["cg"]
#: ranks, devices
PLACES = [(2, 1), (4, 1), (4, 2)] if guest.LONG else [(4, 2)]


def start(folder: Path, ranks: int, devices: int, words: list[str], settings: dict[str, str] | None = None) -> Finished:
    """Run an app."""
    record = folder / "record.json"
    command = [str(guest.ROOT / words[0]), *words[1:], "--json", str(record)]
    done = guest.run(ranks, *command, devices=devices, cwd=folder, settings=settings)
    found: dict[str, Any] = json.loads(record.read_text())
    return Finished(done.returncode, done.stdout, "", found)


@pytest.mark.parametrize(("ranks", "devices"), PLACES)
@pytest.mark.parametrize("program", [name for name in PROGRAMS if name not in LEFT])
def test_verifies(program: str, ranks: int, devices: int, tmp_path: Path) -> None:
    before = guest.packets()
    run = start(tmp_path, ranks, devices, PROGRAMS[program])
    crossed = guest.packets() - before
    check_verified(run, ranks)
    check_traffic(run, ranks, "verbs")
    if devices == 2:
        assert crossed > 100
    else:
        assert crossed == 0


@pytest.mark.parametrize("words", [[HEAT, "--size", "257", "--iterations", "400"], PROGRAMS["cg"]], ids=["heat", "cg"])
def test_registrations_are_kept(words: list[str], tmp_path: Path, record: Any) -> None:
    """Where everything of more than 1 KiB goes by RDMA READ, 95 % of what is needed is registered already."""
    run = start(tmp_path, 2, 2, words, {"PYMPX_VERBS_SLOT": "1K", "PYMPX_VERBS_RENDEZVOUS": "1K", "PYMPX_REPORT": "1"})
    check_verified(run, 2)
    line = re.search(r"verbs +(\d+) hits, (\d+) misses, (\d+) for one use", run.out)
    assert line, run.out
    hits, misses, once = (int(number) for number in line.groups())
    record({"app": words[0], "hits": hits, "misses": misses, "for_one_use": once})
    assert hits > 1000
    assert hits >= 0.95 * (hits + misses + once), line.group()
