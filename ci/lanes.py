"""Run lanes of lanes.toml: ``ci/lane NAME [--long]``, ``ci/lane --list``, and all of them for ``ci/test``.

Each lane has its own log under build/logs. A lane fails if a command fails, if its time is over, or if no test ran. With --long
the result of each lane is recorded under records/. PYMPX_TEST_SEED is what random tests start from (drawn here in long runs).
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import secrets
import subprocess
import sys
import time
import tomllib
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from record import write_record

ROOT = Path(__file__).resolve().parent.parent
LOGS = ROOT / "build" / "logs"
_TICK_S = 20.0
_SHOWN_LINES = 150


def _load_jobs() -> Any:
    """Load pympx/testing/jobs.py by its path: lanes must end what hangs even where the package cannot be imported."""
    spec = importlib.util.spec_from_file_location("pympx_testing_jobs", ROOT / "pympx" / "testing" / "jobs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Lane:
    """One entry of lanes.toml; minutes is the time limit for the form that was asked for."""

    name: str
    shows: str
    commands: list[str]
    minutes: float
    junit: list[Path]


@dataclass
class Outcome:
    """What a lane gave. `problems` says in words what failed beside tests."""

    seconds: float = 0.0
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not self.failed and not self.problems


def load_lanes(path: Path, long: bool) -> list[Lane]:
    """Read lanes.toml. Raises KeyError for an entry without what every lane needs."""
    lanes = []
    for name, entry in tomllib.loads(path.read_text()).items():
        commands = entry.get("long", entry["commands"]) if long else entry["commands"]
        junit = [ROOT / report for report in entry.get("junit", [])]
        lanes.append(Lane(name, entry["shows"], commands, entry["minutes"][1 if long else 0], junit))
    return lanes


def count_junit(path: Path) -> tuple[int, int, int]:
    """Return (passed, failed, skipped) of a JUnit report; (0, 0, 0) if there is none or it is cut off."""
    try:
        cases = list(ET.parse(path).getroot().iter("testcase"))
    except (OSError, ET.ParseError):
        return 0, 0, 0
    failed = sum(1 for case in cases if case.find("failure") is not None or case.find("error") is not None)
    skipped = sum(1 for case in cases if case.find("skipped") is not None)
    return len(cases) - failed - skipped, failed, skipped


def _environment(long: bool, seed: int) -> dict[str, str]:
    venv = Path(sys.prefix)
    environment = dict(os.environ, VIRTUAL_ENV=str(venv), PATH=f"{venv / 'bin'}{os.pathsep}{os.environ['PATH']}")
    environment["PYMPX_CI"] = "1"  # nothing may be skipped because it was not built
    environment["PYMPX_TEST_SEED"] = str(seed)
    environment["PYMPX_TEST_LONG"] = "1" if long else "0"
    environment["PYMPX_TEST_RECORD"] = str(_counts())
    for name in ("PYTHONPATH", "PYMPX_TRANSPORT"):
        environment.pop(name, None)
    return environment


def _last_line(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 400))
        lines = file.read().decode(errors="replace").strip().splitlines()
    return lines[-1][:100] if lines else ""


def run_lane(lane: Lane, *, long: bool, seed: int, jobs: Any) -> Outcome:
    """Run the commands of a lane one after the other, all of them even if one fails, within the lane's time."""
    outcome = Outcome()
    log = LOGS / f"{lane.name}.log"
    started = time.monotonic()
    deadline = started + lane.minutes * 60
    environment = _environment(long, seed)
    with log.open("wb") as out:
        for number, command in enumerate(lane.commands):
            report = LOGS / f"{lane.name}.{number}.xml"
            for stale in (report, *lane.junit):
                stale.unlink(missing_ok=True)
            environment["PYTEST_ADDOPTS"] = f"--junitxml={report} -o junit_family=xunit2"
            out.write(f"$ {command}\n".encode())
            out.flush()
            code = None
            words = ["bash", "-euo", "pipefail", "-c", command]
            with jobs.Job(words, env=environment, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT) as job:
                while code is None and (left := deadline - time.monotonic()) > 0:
                    code = job.wait(min(_TICK_S, left))
                    if code is None:
                        print(f"    {lane.name} {time.monotonic() - started:.0f} s: {_last_line(log)}", flush=True)
            counts = [count_junit(path) for path in (report, *lane.junit)]
            passed, failed, skipped = (sum(column) for column in zip(*counts, strict=True))
            if not passed + failed + skipped:  # no tests inside, or none known: the command is the test
                passed, failed = (1, 0) if code == 0 else (0, 1)
            if code is None:
                outcome.problems.append(f"not over after {lane.minutes:g} min: {command}")
            elif code != 0:
                outcome.problems.append(f"exit code {code}: {command}")
            if code != 0 and not failed:
                failed = 1
            if code == 0 and not passed:
                outcome.problems.append(f"nothing was tested, all skipped: {command}")
            outcome.passed += passed
            outcome.failed += failed
            outcome.skipped += skipped
            if code is None:
                break
    outcome.seconds = time.monotonic() - started
    return outcome


def _show_failure(lane: Lane, outcome: Outcome) -> None:
    log = LOGS / f"{lane.name}.log"
    lines = log.read_text(errors="replace").splitlines()
    print(f"---- {lane.name}: the last {min(len(lines), _SHOWN_LINES)} lines of {log.relative_to(ROOT)}")
    print("\n".join(lines[-_SHOWN_LINES:]))
    print("\n".join(f"---- {lane.name}: {problem}" for problem in outcome.problems), flush=True)


def _counts() -> Path:
    """Where tests append what they counted, a line of JSON each."""
    return LOGS / "counts.jsonl"


def _notes(lane: Lane) -> list[str]:
    """Return what says how much a lane did: what its tests counted, and of its log pytest's summaries and seeds."""
    lines = (LOGS / f"{lane.name}.log").read_text(errors="replace").splitlines()
    wanted = re.compile(r"\bseed\b|\bmessages\b|^=+ .* in [\d.]+s|^Ok:|^Fail:", re.IGNORECASE)
    counted = _counts().read_text().splitlines() if _counts().exists() else []
    return counted[:40] + [line.strip("= ") for line in lines if wanted.search(line) and not line.startswith("$ ")][:40]


def main() -> int:
    """Command line; returns the exit code: 0 if every lane that ran passed."""
    parser = argparse.ArgumentParser(prog="ci/lane", description="Run lanes of ci/lanes.toml.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="lanes to run")
    parser.add_argument("--all", action="store_true", help="run every lane")
    parser.add_argument("--list", action="store_true", help="say what lanes there are")
    parser.add_argument("--long", action="store_true", help="the long form, recorded under records/")
    options = parser.parse_args()
    lanes = load_lanes(ROOT / "ci" / "lanes.toml", options.long)
    if options.list:
        for lane in lanes:
            print(f"{lane.name:12} {lane.shows}")
        return 0
    unknown = set(options.names) - {lane.name for lane in lanes}
    if unknown or not (options.names or options.all):
        parser.error(f"no such lane: {', '.join(sorted(unknown))}; see --list" if unknown else "name a lane; see --list")
    chosen = [lane for lane in lanes if options.all or lane.name in options.names]
    LOGS.mkdir(parents=True, exist_ok=True)
    jobs = _load_jobs()
    seed = int(os.environ.get("PYMPX_TEST_SEED") or (secrets.randbits(31) if options.long else 1))
    started = time.monotonic()
    results = []
    for number, lane in enumerate(chosen, 1):
        print(f"[{number}/{len(chosen)}] {lane.name}: {lane.shows}", flush=True)
        _counts().unlink(missing_ok=True)
        outcome = run_lane(lane, long=options.long, seed=seed, jobs=jobs)
        results.append((lane, outcome))
        if not outcome.good:
            _show_failure(lane, outcome)
        print(f"[{number}/{len(chosen)}] {lane.name}: {outcome.seconds:.1f} s, {'passed' if outcome.good else 'FAILED'}", flush=True)
        if options.long:
            write_record(
                lane.name,
                seconds=outcome.seconds,
                seed=seed,
                passed=outcome.passed,
                failed=outcome.failed,
                skipped=outcome.skipped,
                notes=_notes(lane) + outcome.problems,
            )
    print(f"\n{'lane':14}{'seconds':>9}{'passed':>8}{'failed':>8}{'skipped':>9}  result")
    for lane, outcome in results:
        row = f"{lane.name:14}{outcome.seconds:9.1f}{outcome.passed:8}{outcome.failed:8}{outcome.skipped:9}"
        print(f"{row}  {'passed' if outcome.good else 'FAILED'}")
        for problem in outcome.problems:
            print(f"{'':14}{problem}")
    passed = sum(outcome.passed for _, outcome in results)
    failed = sum(max(outcome.failed, 0 if outcome.good else 1) for _, outcome in results)
    print(f"total {time.monotonic() - started:.0f} s, seed {seed}")
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
