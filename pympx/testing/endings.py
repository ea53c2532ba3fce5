"""A test fails on one rank: the others hear of it, so that what they wait for raises instead of hanging, and it is shown once.

Two kinds of session: one that a test marked `ranks` started on each rank (`RankEnding`; the outer session merges what they report), and one
of a user who starts pytest itself on ranks, as in ``mpiexec -n 4 pytest tests`` (`SessionEnding`). Nothing of pympx is imported here before
a test has done so.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Generator
from types import ModuleType
from typing import Any

import pytest

#: the attribute of a report whose failure is the consequence of another rank's
FOLLOWS = "pympx_follows"
#: seconds that the other sessions have to end after a failure
_END_S = 10.0


def _job() -> ModuleType | None:
    """Return the module that tells the other ranks; None where there are none, or where messages cannot be sent."""
    if "pympx.runtime" not in sys.modules:
        return None
    from .. import uncaught

    return uncaught if uncaught.own_rank() >= 0 else None


class _Ending:
    """Sees each failure of a test while other ranks can be told of it."""

    @pytest.hookimpl(wrapper=True, tryfirst=True)  # outermost: it sees the outcome that xfail has changed
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        job = _job() if report.failed and call.excinfo is not None else None
        if job is not None and call.excinfo is not None:
            self._failed(job, report, call.excinfo.value)
        return report

    def _failed(self, job: ModuleType, report: pytest.TestReport, value: BaseException) -> None:
        raise NotImplementedError


class RankEnding(_Ending):
    """Tells the other ranks of the same test."""

    def _failed(self, job: ModuleType, report: pytest.TestReport, value: BaseException) -> None:
        if job.follows(value):
            setattr(report, FOLLOWS, True)
        else:
            job.tell(job.TEST_FAILED, job.summary(value))


class SessionEnding(_Ending):
    """Ends all sessions after the first test that failed on some rank; a failure that others share, or follow from, is shown once."""

    def __init__(self) -> None:
        self._stopped = ""

    def _failed(self, job: ModuleType, report: pytest.TestReport, value: BaseException) -> None:
        rank, line = job.own_rank(), job.summary(value)
        self._look(job)
        self._stopped = self._stopped or f"a test failed on rank {rank}"
        if job.follows(value):
            job.tell(job.FOLLOWED, line)
            self._shorten(report, f"rank {rank}: {line}")
            return
        text = f"{line}\n{report.longreprtext}"
        job.tell(job.TEST_FAILED, text)
        job.await_reports(job.PATIENCE_S, but=())
        alike = [each.rank for each in job.reports() if each.kind == job.TEST_FAILED and _same(each.text, text)]
        if alike and min(alike) < rank:
            self._shorten(report, f"rank {rank}: as rank {min(alike)}: {line}")
        elif alike:
            report.sections.append(("pympx", f"{job.ranges([rank, *alike])} failed alike"))

    def _shorten(self, report: pytest.TestReport, line: str) -> None:
        report.longrepr = line
        report.sections = []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        result = yield
        if job := _job():
            self._look(job)
            item.session.shouldfail = self._stopped or item.session.shouldfail
        return result

    def _look(self, job: ModuleType) -> None:
        """See whether a test failed elsewhere."""
        job.look()
        failed = [each.rank for each in job.reports() if each.kind == job.TEST_FAILED]
        if failed:
            self._stopped = self._stopped or f"a test failed on {job.ranges(failed)}"

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self) -> None:
        """Leave together: the first exit code but 0 makes launchers end the other ranks."""
        job = _job()
        if job is None:
            return
        self._look(job)
        if not self._stopped:
            return
        sys.stdout.flush()
        sys.stderr.flush()
        job.tell(job.DONE, "")
        job.await_reports(_END_S, but=(job.TEST_FAILED, job.FOLLOWED))


def _same(one: str, other: str) -> bool:
    """Return whether two texts differ at most in addresses."""
    return re.sub(r"0x[0-9a-fA-F]+", "0x", one) == re.sub(r"0x[0-9a-fA-F]+", "0x", other)
