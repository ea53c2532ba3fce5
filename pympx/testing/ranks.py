"""One test on n ranks, seen from outside: start the inner sessions, watch their reports, end what hangs, merge to one verdict."""

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

from .hang import dump_job, format_stacks
from .jobs import Job, LauncherError, launcher_command

#: how long the other ranks may take to end by themselves after one rank's test failed, seconds
GRACE_S = 10.0
_OUTPUT_LINES = 60
Phase = Literal["setup", "call", "teardown"]


@dataclass(frozen=True)
class Plan:
    """What to start. `arguments` go through a file, so that no launcher can misread a test's id."""

    ranks: int
    launcher: str
    python: Sequence[str]
    arguments: Sequence[str]
    reports_option: str
    environment: Mapping[str, str]
    directory: Path
    timeout: float


@dataclass
class Rank:
    """What one rank's session has written so far."""

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
    """How it went: per rank, and what the launcher said. `trouble` is empty if all ranks came to their end by themselves."""

    ranks: list[Rank]
    seconds: float = 0.0
    code: int | None = None
    trouble: str = ""
    stdout: str = ""
    stderr: str = ""
    stacks: dict[str, str] = field(default_factory=dict)


def run_plan(plan: Plan) -> Run:
    """Run the plan to its end, its time limit, or `GRACE_S` after the first rank that failed."""
    directory = Path(tempfile.mkdtemp(prefix="pympx-ranks-"))
    try:
        return _run(plan, directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _run(plan: Plan, directory: Path) -> Run:
    arguments = directory / "arguments"
    arguments.write_text("".join(f"{line}\n" for line in [*plan.arguments, f"{plan.reports_option}={directory}"]))
    run = Run([Rank() for _ in range(plan.ranks)])
    started = time.monotonic()
    try:
        command = launcher_command([*plan.python, f"@{arguments}"], plan.ranks, plan.launcher)
    except (LauncherError, ValueError) as error:
        run.trouble = str(error)
        return run
    paths = directory / "stdout", directory / "stderr"
    with (
        paths[0].open("wb") as out,
        paths[1].open("wb") as err,
        Job(command, env=plan.environment, cwd=plan.directory, stdout=out, stderr=err) as job,
    ):
        deadline = started + plan.timeout
        first_failure = 0.0
        while (code := job.wait(0.05)) is None:
            run.ranks = _read(directory, plan.ranks)
            now = time.monotonic()
            if not first_failure and any(rank.failed for rank in run.ranks):
                first_failure = now
            if now > deadline:
                run.trouble = f"not over after {plan.timeout:g} s"
            elif first_failure and now - first_failure > GRACE_S and not all(rank.done for rank in run.ranks):
                run.trouble = f"ranks were left {GRACE_S:g} s after the first failure"
            if run.trouble:
                run.stacks = dump_job(job)
                break
        job.kill()
        run.code = code
    run.seconds = time.monotonic() - started
    run.ranks = _read(directory, plan.ranks)
    run.stdout, run.stderr = (path.read_text(errors="replace") for path in paths)
    return run


def _read(directory: Path, n: int) -> list[Rank]:
    ranks = []
    for number in range(n):
        try:
            data = json.loads((directory / f"rank{number}.json").read_text())
        except FileNotFoundError:
            ranks.append(Rank())
        else:
            ranks.append(Rank(data["done"], data["reports"], data["errors"]))
    return ranks


def _names(numbers: Sequence[int]) -> str:
    return f"{'rank' if len(numbers) == 1 else 'ranks'} {','.join(map(str, numbers))}"


def fold(texts: Mapping[int, str]) -> list[tuple[str, str]]:
    """Group ranks with the same text, addresses and private directories apart: [("ranks 0,2", text), ...]."""
    groups: dict[str, list[int]] = {}
    for number, text in texts.items():
        key = re.sub(r"0x[0-9a-fA-F]+", "0x", text)
        groups.setdefault(re.sub(r"pympx-ranks-\w+/rank\d+", "", key), []).append(number)
    return [(_names(numbers), texts[numbers[0]]) for numbers in groups.values()]


def _longrepr(item: pytest.Item, report: dict[str, Any]) -> str:
    rebuilt = item.config.hook.pytest_report_from_serializable(config=item.config, data=dict(report))
    return str(rebuilt.longreprtext)


def _texts(item: pytest.Item, plan: Plan, run: Run, when: str) -> str:
    """Return everything that is to be said about a failure in phase `when`, "" if there is none."""
    failures = {}
    for number, rank in enumerate(run.ranks):
        report = rank.phase(when)
        if report and report["outcome"] == "failed":
            failures[number] = _longrepr(item, report)
        elif when == "call" and rank.errors:
            failures[number] = "\n".join(rank.errors)
    parts = [f"{who}: {_headline(text)}\n{text}" for who, text in fold(failures)]
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
        parts.append(f"{_names(lost)}: died without a report (the launcher ended with code {run.code})")
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
        outcome, longrepr = "failed", text
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
        setup.longrepr = "\n\n".join([str(setup.longrepr), *_endings(plan, run)])
    elif endings := _endings(plan, run):
        setup.outcome, setup.longrepr = "failed", "\n\n".join(endings)
    reports.append(_phase(item, plan, run, "teardown"))
    return reports
