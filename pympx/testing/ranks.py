"""Tests on n ranks, seen from outside: start the inner sessions, watch their reports, end what hangs, merge to one verdict each.

What both sides know is a directory: `order.json` (the tests' ids in order, the number of ranks), and for rank R and test T
`rankR.T.json` (reports so far), `rankR.T.done` (R is through with T: "passed" or "failed"), and `rankR.end.json` at R's end.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from _pytest._code.code import TerminalRepr
from _pytest._io import TerminalWriter

from .endings import FOLLOWS
from .hang import dump_job, format_stacks
from .jobs import Job, launcher_command

#: how long the other ranks may take to end by themselves after one rank's test failed, seconds
GRACE_S = 10.0
_OUTPUT_LINES = 60
Phase = Literal["setup", "call", "teardown"]


@dataclass(frozen=True)
class Plan:
    """What to start: `tests` are node ids, run in this order by one job; `arguments` go through a file, so that no launcher can
    misread a test's id."""

    tests: Sequence[str]
    ranks: int
    launcher: str
    python: Sequence[str]
    arguments: Sequence[str]
    reports_option: str
    environment: Mapping[str, str]
    directory: Path


@dataclass
class Rank:
    """What one rank has written about one test so far; `done`: it is through with it."""

    done: bool = False
    reports: list[dict[str, Any]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        return bool(self.errors) or any(report["outcome"] == "failed" for report in self.reports)

    def phase(self, when: str) -> dict[str, Any] | None:
        return next((report for report in self.reports if report["when"] == when), None)


@dataclass
class Run:
    """How it went: per rank, and what the launcher said.

    `lost`: ranks went without a report while the rest waited; `trouble` is empty if all ranks ended by themselves.
    """

    ranks: list[Rank]
    seconds: float = 0.0
    last: bool = True
    lost: bool = False
    code: int | None = None
    trouble: str = ""
    stdout: str = ""
    stderr: str = ""
    stacks: dict[str, str] = field(default_factory=dict)


class Batch:
    """One job of inner sessions that go through the plan's tests together; `result` is called once per test, in order.

    After a test that failed, or when a rank is lost, the job is over (`over`): the tests that are left need another batch.
    """

    def __init__(self, plan: Plan) -> None:
        """Start the job. Raises LauncherError or ValueError when the plan's launcher cannot be used."""
        self.plan = plan
        self.over = False
        self._next = 0
        self._directory = Path(tempfile.mkdtemp(prefix="pympx-ranks-"))
        try:
            (self._directory / "order.json").write_text(json.dumps({"tests": list(plan.tests), "ranks": plan.ranks}))
            arguments = self._directory / "arguments"
            arguments.write_text("".join(f"{line}\n" for line in [*plan.arguments, f"{plan.reports_option}={self._directory}"]))
            command = launcher_command([*plan.python, f"@{arguments}"], plan.ranks, plan.launcher)
            with (self._directory / "stdout").open("wb") as out, (self._directory / "stderr").open("wb") as err:
                self._job = Job(command, env=plan.environment, cwd=plan.directory, stdout=out, stderr=err)
        except BaseException:
            shutil.rmtree(self._directory, ignore_errors=True)
            raise

    @property
    def next_test(self) -> str | None:
        """The id of the test that `result` will wait for, None when the batch is over."""
        return None if self.over else self.plan.tests[self._next]

    def result(self, timeout: float) -> Run:
        """Wait for the next test: to its end on all ranks, to the time limit, or to `GRACE_S` after the first rank that failed."""
        index = self._next
        self._next += 1
        run = Run([], last=self._next == len(self.plan.tests))
        started = time.monotonic()
        first_failure = 0.0
        missing: set[int] = set()
        looked = started
        while (code := self._job.wait(0.02)) is None:
            run.ranks = self._read(index)
            now = time.monotonic()
            failed = any(rank.failed for rank in run.ranks)
            done = all(rank.done for rank in run.ranks)
            if done and not failed and not run.last:
                break
            if failed and not first_failure:
                first_failure = now
            if now > started + timeout:
                run.trouble = f"not over after {timeout:g} s"
            elif first_failure and now > first_failure + GRACE_S and not done:
                run.trouble = f"ranks were left {GRACE_S:g} s after the first failure"
            elif any(rank.done for rank in run.ranks) and not done and now > looked + 1:
                # a launcher may wait for the rest when a rank leaves, and the rest waits for that rank
                looked = now
                alive = {process.rank for process in self._job.ranks()}
                gone = {number for number, rank in enumerate(run.ranks) if not rank.done} - alive
                run.lost = bool(gone & missing)
                missing = gone
            if run.lost:
                break
            if run.trouble:
                # those that wait for the others at the end of the test have nothing to tell
                run.stacks = dump_job(self._job, None if done else [number for number, rank in enumerate(run.ranks) if not rank.done])
                break
        run.code = code
        run.ranks = self._read(index)
        run.seconds = time.monotonic() - started
        if run.code is not None or run.trouble or run.lost:
            self._job.kill()
            run.ranks = self._read(index)
            run.stdout, run.stderr = ((self._directory / name).read_text(errors="replace") for name in ("stdout", "stderr"))
            self.close()
        return run

    def close(self) -> None:
        """End the job and forget its files. Idempotent."""
        if not self.over:
            self.over = True
            self._job.kill()
            shutil.rmtree(self._directory, ignore_errors=True)

    def _read(self, index: int) -> list[Rank]:
        ranks = []
        for number in range(self.plan.ranks):
            done = (self._directory / f"rank{number}.{index}.done").exists()
            errors = _load(self._directory / f"rank{number}.end.json")
            reports = _load(self._directory / f"rank{number}.{index}.json")
            ranks.append(Rank(done or bool(errors), reports, [] if done else errors))
        return ranks


def _load(path: Path) -> list[Any]:
    try:
        return list(json.loads(path.read_text()))
    except FileNotFoundError:
        return []


def _names(numbers: Sequence[int]) -> str:
    return f"{'rank' if len(numbers) == 1 else 'ranks'} {','.join(map(str, numbers))}"


def fold(texts: Mapping[int, str]) -> list[tuple[str, str]]:
    """Group ranks with the same text, addresses and private directories apart: [("ranks 0,2", text), ...]."""
    groups: dict[str, list[int]] = {}
    for number, text in texts.items():
        key = re.sub(r"0x[0-9a-fA-F]+", "0x", text)
        groups.setdefault(re.sub(r"pympx-ranks-\w+/rank\d+", "", key), []).append(number)
    return [(_names(numbers), texts[numbers[0]]) for numbers in groups.values()]


@dataclass(frozen=True)
class _Crash:
    message: str


class Failure(TerminalRepr):
    """The report of a failure on ranks: `text` whole, but its first line where pytest wants one line (summaries, JUnit's message)."""

    def __init__(self, text: str) -> None:
        self._text = text
        self.reprcrash = _Crash(text.partition("\n")[0])

    def toterminal(self, tw: TerminalWriter) -> None:
        """Write all of it."""
        tw.line(self._text)


def _longrepr(item: pytest.Item, report: dict[str, Any]) -> str:
    rebuilt = item.config.hook.pytest_report_from_serializable(config=item.config, data=dict(report))
    return str(rebuilt.longreprtext)


def _texts(item: pytest.Item, plan: Plan, run: Run, when: str) -> str:
    """Return everything that is to be said about a failure in phase `when`, "" if there is none."""
    failures, followed = {}, {}
    for number, rank in enumerate(run.ranks):
        report = rank.phase(when)
        if report and report["outcome"] == "failed" and report.get(FOLLOWS):
            followed[number] = _headline(_longrepr(item, report))
        elif report and report["outcome"] == "failed":
            failures[number] = _longrepr(item, report)
        elif when == "call" and rank.errors:
            failures[number] = "\n".join(rank.errors)
    parts = [f"{who}: {_headline(text)}\n{text}" for who, text in fold(failures)]
    if when != "teardown":  # calls of finalizers raise too
        parts += [f"{who}: {text}" for who, text in fold(followed)]
    if when == "call":
        parts += _endings(plan, run)
    return "\n\n".join(parts)


def _headline(text: str) -> str:
    """Return the first line of a traceback that pytest marks as the error, for one-line summaries."""
    return next((line[1:].strip() for line in text.splitlines() if line.startswith("E  ")), "")


def _endings(plan: Plan, run: Run) -> list[str]:
    """Say what went wrong beside the test's own failures: ranks that hung, died, or spoke after their end."""
    parts = []
    if run.trouble:
        parts.append(f"{plan.launcher}, {plan.ranks} ranks: {run.trouble}")
        if not run.stacks:
            return parts
    unfinished = [number for number, rank in enumerate(run.ranks) if not rank.done]
    hung, lost = (unfinished, []) if run.stacks else ([], unfinished)
    if hung:
        parts.append(f"{_names(hung)}: ended while still running")
    if lost:
        parts.append(f"{_names(lost)}: died without a report" + ("" if run.code is None else f" (the launcher ended with code {run.code})"))
    if run.stacks:
        parts.append(format_stacks(run.stacks))
    silent_failure = run.code not in (0, None) and not lost and not any(rank.failed for rank in run.ranks)
    if silent_failure:
        parts.append(f"every rank finished the test, then the launcher ended with code {run.code}")
    noise = run.stderr.strip() and not any(rank.failed for rank in run.ranks)
    if (lost or silent_failure) and run.stdout.strip():
        parts.append(f"--- output of the ranks ---\n{_tail(run.stdout)}")
    if (lost or silent_failure or noise) and run.stderr.strip():
        parts.append(f"--- stderr of the ranks, outside of the test ---\n{_tail(run.stderr)}")
    return parts


def _tail(text: str) -> str:
    return "\n".join(text.rstrip().splitlines()[-_OUTPUT_LINES:])


def _kind(report: dict[str, Any]) -> str:
    if "wasxfail" in report:
        return "xfailed" if report["outcome"] == "skipped" else "xpassed"
    return str(report["outcome"])


def _phase(item: pytest.Item, plan: Plan, run: Run, when: Phase) -> pytest.TestReport:
    """Merge one phase: failed if anything failed, skipped or xfailed if all ranks agree on it, else passed."""
    found = {number: report for number, rank in enumerate(run.ranks) if (report := rank.phase(when))}
    kinds = {number: _kind(report) for number, report in found.items()}
    text = _texts(item, plan, run, when)
    skipped = [number for number, kind in kinds.items() if kind == "skipped"]
    if not text and skipped and len(skipped) < plan.ranks:
        others = [number for number in range(plan.ranks) if number not in skipped]
        text = f"{_names(skipped)} skipped the test in {when}, {_names(others)} did not"
    sections = []
    for name in ("stdout", "stderr", "log"):
        title = f"Captured {name} {when}"
        said = {n: text for n, r in found.items() if r["outcome"] == "failed" for heading, text in r["sections"] if heading == title}
        sections += [(f"{title}, {who}", content) for who, content in fold(said)]
    outcome: Any = "passed"
    longrepr: Any = None
    if text:
        outcome, longrepr = "failed", Failure(text)
    elif skipped:
        outcome, longrepr = "skipped", tuple(found[skipped[0]]["longrepr"])
    elif "xfailed" in kinds.values():
        outcome = "skipped"
    merged = pytest.TestReport(
        nodeid=item.nodeid,
        location=item.location,
        keywords=dict.fromkeys(item.keywords, 1),
        outcome=outcome,
        longrepr=longrepr,
        when=when,
        sections=sections,
        duration=run.seconds if when == "call" else max((report["duration"] for report in found.values()), default=0.0),
    )
    reasons = [report["wasxfail"] for report in found.values() if "wasxfail" in report]
    if reasons and not text:
        merged.wasxfail = reasons[0]
    return merged


def merge(item: pytest.Item, plan: Plan, run: Run) -> list[pytest.TestReport]:
    """Return the reports of the item's phases, as one process would have given them."""
    setup = _phase(item, plan, run, "setup")
    reports = [setup]
    if setup.passed:
        reports.append(_phase(item, plan, run, "call"))
    elif setup.failed:
        setup.longrepr = Failure("\n\n".join([str(setup.longrepr), *_endings(plan, run)]))
    elif endings := _endings(plan, run):
        setup.outcome, setup.longrepr = "failed", Failure("\n\n".join(endings))
    reports.append(_phase(item, plan, run, "teardown"))
    return reports
