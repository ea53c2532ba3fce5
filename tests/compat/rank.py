"""One rank of a compat run: ``rank.py DIRECTORY MODULE OUT`` runs the tests of one module of mpi4py's test suite.

It writes JSON lines to OUT/rankR.jsonl as it goes: {"start": id}, {"end": id, "outcome": ..., "detail": ...}, and at the end
{"done": true, "libraries": [MPI libraries in this process]}. A test that started and did not end tells where a rank hung or died.
"""

from __future__ import annotations

import json
import os
import sys
import unittest
from pathlib import Path
from typing import Any

directory, module, out = sys.argv[1:4]
sys.path.insert(0, directory)
for absent in ("cupy", "numba"):  # as mpi4py's own runner has it without --cupy, --numba
    sys.modules[absent] = None  # type: ignore[assignment]

from mpi4py import MPI  # noqa: E402


class Recorder(unittest.TestResult):
    """Writes one line per event. The worst outcome of a test's parts counts: error, fail, skip, pass."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = path.open("w", buffering=1)
        self._outcome, self._detail = "pass", ""
        self.started: set[str] = set()

    def write(self, **entry: Any) -> None:
        self._file.write(json.dumps(entry) + "\n")

    def _worse(self, outcome: str, detail: str) -> None:
        order = ("pass", "skip", "fail", "error")
        if order.index(outcome) > order.index(self._outcome):
            self._outcome, self._detail = outcome, detail

    def startTest(self, test: unittest.TestCase) -> None:
        super().startTest(test)
        self._outcome, self._detail = "pass", ""
        self.started.add(test.id())
        self.write(start=test.id())

    def stopTest(self, test: unittest.TestCase) -> None:
        super().stopTest(test)
        self.write(end=test.id(), outcome=self._outcome, detail=self._detail)

    def addError(self, test: Any, err: Any) -> None:
        self._worse("error", self._exc_info_to_string(err, test)[-2000:])  # type: ignore[attr-defined]

    def addFailure(self, test: Any, err: Any) -> None:
        self._worse("fail", self._exc_info_to_string(err, test)[-2000:])  # type: ignore[attr-defined]

    def addSkip(self, test: Any, reason: str) -> None:
        self._worse("skip", reason)

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:
        if err is not None:
            name = f"{subtest}\n"
            self._worse("fail", name + self._exc_info_to_string(err, test)[-2000:])  # type: ignore[attr-defined]

    def addUnexpectedSuccess(self, test: Any) -> None:
        self._worse("fail", "unexpected success")


def libraries() -> list[str]:
    """Return the MPI libraries that are mapped into this process."""
    paths = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
    return sorted(path for path in paths if os.path.basename(path).startswith(("libmpi", "libmpich", "MPI.mpi", "libmpi_abi")))


def every(suite: unittest.TestSuite) -> list[unittest.TestCase]:
    """Return the tests of a suite and the suites in it."""
    return [test for part in suite for test in (every(part) if isinstance(part, unittest.TestSuite) else [part])]


recorder = Recorder(Path(out) / f"rank{MPI.COMM_WORLD.Get_rank()}.jsonl")
suite = unittest.defaultTestLoader.loadTestsFromName(module)
names = [test.id() for test in every(suite)]  # before the run, which empties the suite
skipped = {test.id() for test in every(suite) if getattr(type(test), "__unittest_skip__", False)}
suite.run(recorder)
for name in names:
    if name not in recorder.started and name not in skipped:  # an error before it: of setUpClass
        recorder.write(start=name)
        recorder.write(end=name, outcome="error", detail="its class could not be set up")
recorder.write(done=True, libraries=libraries())
