"""apps/tasks: every task is answered once, also when a worker is killed in the middle; and the answers are the published ones."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from apps.tasks import queens
from pympx.testing.hang import format_stacks, run_ranks

ROOT = Path(__file__).resolve().parents[2]


def run(ranks: int, transport: str, record: Path, *words: str, keep_going: bool = False) -> tuple[dict[str, Any], str]:
    environment = {**os.environ, "PYMPX_TRANSPORT": transport}
    command = [sys.executable, "-P", str(ROOT / "apps" / "tasks" / "tasks.py"), "--json", str(record), *words]
    if keep_going:
        result = run_ranks(["--keep-going", *command], ranks, launcher="run", env=environment, timeout=60)
    else:
        result = run_ranks(command, ranks, env=environment, timeout=60)
    assert not result.timed_out, f"{result.stdout}\n{result.stderr}\n{format_stacks(result.stacks)}"
    assert "VERIFIED" in result.stdout, f"{result.stdout}\n{result.stderr}"
    return json.loads(record.read_text()), result.stdout + result.stderr


@pytest.mark.parametrize("n", range(4, 11))
def test_the_tasks_add_up(n: int) -> None:
    for rows in range(1, min(n, 4)):
        assert sum(queens.count(n, task) for task in queens.starts(n, rows)) == queens.PUBLISHED[n]


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_every_task_is_executed_once(ranks: int, transport: str, tmp_path: Path) -> None:
    found, _ = run(ranks, transport, tmp_path / "record.json")
    assert found["solutions"] == 724 and found["again"] == 0 and sum(found["executed"].values()) == found["tasks"] == 364
    if ranks > 2:
        assert all(found["executed"].values())


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize("after", [0, 1, 10])
def test_a_worker_is_killed_and_no_task_is_lost(transport: str, after: int, tmp_path: Path) -> None:
    # tasks that take milliseconds: every worker has its share
    words = ("--queens", "12", "--rows", "2", "--kill", f"2:{after}")
    found, said = run(4, transport, tmp_path / "record.json", *words, keep_going=True)
    assert found["solutions"] == 14200 and found["lost"] == [2] and 1 <= found["again"] <= 4, said
    executed = sum(found["executed"].values())  # by those who live
    assert found["tasks"] - after <= executed < found["tasks"] + 1, said
    assert "lost: MPI_ERR_PROC_FAILED: call of execute on rank 2" in said and "killed by signal 9" in said
