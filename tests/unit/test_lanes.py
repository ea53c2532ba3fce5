"""CI's own verdicts: what a lane counts, and that whatever goes wrong fails it."""

from __future__ import annotations

import sys
import time
import tomllib
from pathlib import Path

import pytest

CI = Path(__file__).resolve().parents[2] / "ci"
sys.path.append(str(CI))

import lanes  # noqa: E402
import record  # noqa: E402


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty checkout for lanes to run in."""
    jobs = lanes.ROOT / "pympx" / "testing" / "jobs.py"
    copy = tmp_path / jobs.relative_to(lanes.ROOT)
    copy.parent.mkdir(parents=True)
    copy.write_text(jobs.read_text())
    monkeypatch.setattr(lanes, "ROOT", tmp_path)
    monkeypatch.setattr(lanes, "LOGS", tmp_path / "logs")
    (tmp_path / "logs").mkdir()
    return tmp_path


def run(place: Path, *commands: str, minutes: float = 1.0, junit: str = "") -> lanes.Outcome:
    lane = lanes.Lane("try", "that it works", list(commands), minutes, [place / junit] if junit else [])
    return lanes.run_lane(lane, long=False, seed=7, jobs=lanes._load_jobs())


def test_every_lane_says_what_it_shows_and_its_commands_exist() -> None:
    short, long = (lanes.load_lanes(CI / "lanes.toml", is_long) for is_long in (False, True))
    expected = "lint unit engine-asan engine-tsan conformance regcache launch hosts api rpc layers faults fuzz stress confined verbs"
    expected += " compat apps"
    assert [lane.name for lane in short] == [lane.name for lane in long] == expected.split()
    for lane in [*short, *long]:
        assert lane.shows
        assert lane.minutes > 0
        for command in lane.commands:
            first = command.split()[0]
            assert first in ("ruff", "pytest", "python", "env") or (CI.parent / first).exists(), command


def test_a_command_without_tests_counts_as_one(place: Path) -> None:
    outcome = run(place, "true", "echo fine >&2")
    assert (outcome.passed, outcome.failed, outcome.good) == (2, 0, True)
    assert "fine" in (place / "logs" / "try.log").read_text()


def test_a_failing_command_fails_and_the_next_still_runs(place: Path) -> None:
    outcome = run(place, "exit 3", "touch later")
    assert (outcome.passed, outcome.failed, outcome.good) == (1, 1, False)
    assert outcome.problems == ["exit code 3: exit 3"]
    assert (place / "later").exists()


def test_pytest_is_counted(place: Path) -> None:
    (place / "test_a.py").write_text("import pytest\ndef test_a(): pass\ndef test_b(): assert 0\ndef test_c(): pytest.skip('no')\n")
    outcome = run(place, f"{sys.executable} -P -m pytest -q test_a.py")
    assert (outcome.passed, outcome.failed, outcome.skipped, outcome.good) == (1, 1, 1, False)


@pytest.mark.parametrize("text", ["import pytest\ndef test_c(): pytest.skip('no')\n", "", "import there_is_no_such_module\n"])
def test_a_lane_that_tests_nothing_fails(place: Path, text: str) -> None:
    (place / "test_a.py").write_text(text)
    assert not run(place, f"{sys.executable} -P -m pytest -q test_a.py").good
    assert not run(place, f"{sys.executable} -P -m pytest -q not_there").good


def test_a_failing_command_with_good_reports_still_fails(place: Path) -> None:
    (place / "test_a.py").write_text("def test_a(): pass\n")
    outcome = run(place, f"{sys.executable} -P -m pytest -q test_a.py; exit 4")
    assert (outcome.passed, outcome.failed, outcome.good) == (1, 1, False)


def test_native_reports_are_counted_and_stale_ones_are_not(place: Path) -> None:
    report = "<testsuites><testsuite><testcase name='a'/><testcase name='b'><failure/></testcase></testsuite></testsuites>"
    (place / "native.xml").write_text(report)
    stale = run(place, "true", junit="native.xml")
    assert (stale.passed, stale.failed) == (1, 0)
    fresh = run(place, f'echo "{report}" > native.xml; exit 1', junit="native.xml")
    assert (fresh.passed, fresh.failed, fresh.good) == (1, 1, False)


def test_a_lane_ends_with_its_time(place: Path) -> None:
    started = time.monotonic()
    outcome = run(place, "setsid sleep 1000 & wait", "touch later", minutes=0.03)
    assert time.monotonic() - started < 60
    assert not outcome.good
    assert outcome.problems == ["not over after 0.03 min: setsid sleep 1000 & wait"]
    assert not (place / "later").exists()


def test_lanes_give_tests_their_seed(place: Path) -> None:
    run(place, "echo seed is $PYMPX_TEST_SEED, long is $PYMPX_TEST_LONG")
    assert "seed is 7, long is 0" in (place / "logs" / "try.log").read_text()
    assert lanes._notes(lanes.Lane("try", "", [], 1, [])) == ["seed is 7, long is 0"]


def test_the_record_of_a_long_run(tmp_path: Path) -> None:
    notes = ['a "quoted" \\ note']
    path = record.write_record("stress", seconds=1.25, seed=42, passed=3, failed=0, skipped=1, notes=notes, directory=tmp_path / "records")
    data = tomllib.loads(path.read_text())
    assert (data["lane"], data["seed"], data["passed"], data["failed"], data["skipped"], data["notes"]) == ("stress", 42, 3, 0, 1, notes)
    assert len(data["commit"]) == 40 or data["commit"] == "unknown"
    assert data["date"].tzinfo is not None
    assert data["machine"]["cores"] >= 1
    assert {"kernel", "processor", "python", "memory_gib"} <= set(data["machine"])
