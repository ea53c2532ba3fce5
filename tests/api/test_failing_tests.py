"""A test on ranks that fails on one of them: the others' calls raise at once, and the report begins with the failure that was first."""

from __future__ import annotations

import time
from importlib.metadata import entry_points

import pytest

pytest_plugins = ["pytester"]

# installed, the entry point loads it
LOAD = [] if entry_points(group="pytest11", name="pympx") else ["-p", "pympx.testing.plugin"]
HEAD = "import pytest\nfrom pympx import MPI\n"


def run(pytester: pytest.Pytester, text: str, *options: str) -> pytest.RunResult:
    pytester.makepyfile(HEAD + text)
    return pytester.runpytest_subprocess(*LOAD, "-p", "no:cacheprovider", *options, timeout=120)


@pytest.mark.parametrize("on_ci", [False, True])
def test_the_others_do_not_wait(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, on_ci: bool) -> None:
    monkeypatch.delenv("BUILD_NUMBER", raising=False)
    monkeypatch.setenv("CI", "true") if on_ci else monkeypatch.delenv("CI", raising=False)  # there, pytest trims no summary
    began = time.monotonic()
    result = run(
        pytester,
        """
@pytest.fixture
def held(comm):
    yield
    comm.Barrier()  # raises too, which is no failure of its own

@pytest.mark.ranks(3, timeout=60)
def test_it(comm, held):
    comm.Barrier()
    if comm.rank == 1:
        raise ValueError("the first")
    comm.recv(source=1)
""",
        "-q",
    )
    result.assert_outcomes(failed=1)
    text = result.stdout.str()
    assert time.monotonic() - began < 30  # far from the time limit, and from the 10 s that other ranks have
    lines = text.splitlines()
    assert lines.index("rank 1: ValueError: the first") < lines.index(
        "ranks 0,2: pympx.api.errors.Exception: MPI_ERR_PROC_FAILED: recv: rank 1 raised ValueError: the first; the job ends"
    )
    assert text.count("MPI_ERR_PROC_FAILED") == 1 and "comm.recv(" not in text  # the others have one line, no traceback
    assert "ended while still running" not in text and "Barrier: rank" not in text
    assert sum(line.startswith("FAILED test_the_others_do_not_wait.py::test_it[n3] - rank 1: ValueError: the ") for line in lines) == 1


def test_what_is_expected_to_fail_disturbs_nobody(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
@pytest.mark.xfail
@pytest.mark.ranks(2)
def test_expected(comm):
    comm.Barrier()
    assert not comm

@pytest.mark.ranks(2)
def test_skipped(comm):
    pytest.skip("on all")

@pytest.mark.ranks(2)
def test_same_job(comm):
    assert comm.allreduce(1) == 2
""",
        "--ranks-batch=5",
    )
    result.assert_outcomes(xfailed=1, skipped=1, passed=1)


def test_the_next_test_has_a_job_of_its_own(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
@pytest.mark.ranks(2)
def test_one(comm):
    assert comm.rank
    comm.recv(source=0)

@pytest.mark.ranks(2)
def test_two(comm):
    assert comm.allreduce(1) == 2
""",
        "--ranks-batch=5",
    )
    result.assert_outcomes(failed=1, passed=1)
