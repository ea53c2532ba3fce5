"""The pytest plugin, driven through real sessions under mpiexec. The inner tests read PMI_RANK only: no compiled part is needed."""

from __future__ import annotations

from importlib.metadata import entry_points

import pytest

from pympx.testing import ranks

pytest_plugins = ["pytester"]

HEAD = """
import os, select, pytest
RANK = int(os.environ.get("PMI_RANK", "-1"))
SIZE = int(os.environ.get("PMI_SIZE", "-1"))
"""
# installed, the entry point loads it
LOAD = [] if entry_points(group="pytest11", name="pympx") else ["-p", "pympx.testing.plugin"]


def run(pytester: pytest.Pytester, text: str, *options: str) -> pytest.RunResult:
    pytester.makepyfile(HEAD + text)
    return pytester.runpytest_subprocess(*LOAD, *options, timeout=300)


@pytest.fixture(autouse=True)
def as_on_a_desk(monkeypatch: pytest.MonkeyPatch) -> None:
    """pytest writes longer summaries where CI is set."""
    monkeypatch.delenv("CI", raising=False)


def test_every_rank_runs_the_test(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        f"""
@pytest.mark.ranks([1, 3])
def test_touch():
    open({str(pytester.path)!r} + f"/ran-{{RANK}}-of-{{SIZE}}", "w").close()

def test_without_ranks():
    assert RANK == -1
""",
        "-v",
    )
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(["*::test_touch[[]n1[]] PASSED*", "*::test_touch[[]n3[]] PASSED*"])
    assert sorted(path.name for path in pytester.path.glob("ran-*")) == ["ran-0-of-1", "ran-0-of-3", "ran-1-of-3", "ran-2-of-3"]
    assert result.stderr.str() == ""


def test_files_with_and_without_ranks_in_a_row(pytester: pytest.Pytester) -> None:
    """Fixtures of a file end with it, also when its last test is one on ranks."""
    pytester.makepyfile(
        test_1="""
import pytest
ended = []

@pytest.fixture(scope="module", autouse=True)
def of_the_file():
    yield
    ended.append(True)

def test_alone():
    assert not ended

@pytest.mark.ranks(2)
def test_on_ranks():
    pass
""",
        test_2="import test_1\n\ndef test_alone():\n    assert test_1.ended\n",
    )
    result = pytester.runpytest_subprocess(*LOAD, timeout=300)
    result.assert_outcomes(passed=3)


def test_one_failing_rank_fails_the_test(pytester: pytest.Pytester) -> None:
    result = run(pytester, "@pytest.mark.ranks(3)\ndef test_it():\n    print('I am', RANK)\n    assert RANK != 1\n")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["rank 1: assert 1 != 1", "*assert 1 != 1", "*Captured stdout call, rank 1*", "I am 1"])
    text = result.stdout.str()
    assert "rank 0" not in text
    assert "BAD TERMINATION" not in text + result.stderr.str()


def test_equal_tracebacks_are_folded(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
@pytest.mark.ranks(4)
def test_equal():
    thing = object()
    if RANK != 1:
        raise KeyError(thing)

@pytest.mark.ranks(2)
def test_different():
    raise KeyError(f"number {RANK}")
""",
    )
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["ranks 0,2,3: KeyError: *", "rank 0: KeyError: 'number 0'", "rank 1: KeyError: 'number 1'"])
    assert result.stdout.str().count("E           KeyError: <object object") == 1


def test_a_hang_shows_the_stacks_of_the_ranks_that_hang(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
def starve():
    select.select([], [], [])

@pytest.mark.ranks(3, timeout=4)
def test_it():
    if RANK == 2:
        starve()
""",
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["mpiexec, 3 ranks: not over after 4 s", "rank 2: ended while still running"])
    result.stdout.fnmatch_lines(["*stack of rank 2*", "*select (libc*", "*starve*"])
    assert "stack of rank 0" not in result.stdout.str()


def test_the_ini_time_limit(pytester: pytest.Pytester) -> None:
    result = run(pytester, "@pytest.mark.ranks(1)\ndef test_it():\n    select.select([], [], [])\n", "-o", "ranks_timeout=3")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["mpiexec, 1 ranks: not over after 3 s"])


def test_survivors_of_a_failure_are_ended_soon(pytester: pytest.Pytester) -> None:
    result = run(pytester, "@pytest.mark.ranks(2, timeout=100)\ndef test_it():\n    assert RANK\n    select.select([], [], [])\n")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["rank 0: *", "*ranks were left 10 s after the first failure", "rank 1: ended while still running"])
    assert result.duration < 60


def test_a_rank_that_dies_is_named(pytester: pytest.Pytester) -> None:
    result = run(pytester, "@pytest.mark.ranks(2)\ndef test_it():\n    if RANK == 1:\n        os._exit(3)\n")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["rank 1: died without a report*"])


def test_a_failure_after_the_test_counts(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        "import atexit\n@pytest.mark.ranks(2)\ndef test_it():\n    if RANK == 1:\n        atexit.register(os._exit, 9)\n",
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["every rank finished the test, then the launcher ended with code 9"])


def test_noise_on_stderr_outside_of_the_test_counts(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        "import atexit\n@pytest.mark.ranks(2)\ndef test_it():\n    atexit.register(os.write, 2, b'a leak\\n')\n",
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*stderr of the ranks, outside of the test*", "a leak"])


def test_skips_and_expected_failures(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
@pytest.mark.ranks(2)
def test_all_skip():
    pytest.skip("not today")

@pytest.mark.skipif(True, reason="nor this")
@pytest.mark.ranks(2)
def test_marked():
    pass

@pytest.mark.ranks(2)
def test_one_skips():
    if RANK:
        pytest.skip("only me")

@pytest.mark.xfail
@pytest.mark.ranks(2)
def test_expected():
    assert RANK

@pytest.mark.xfail(strict=True)
@pytest.mark.ranks(2)
def test_unexpected():
    pass
""",
        "-rs",
    )
    result.assert_outcomes(skipped=2, failed=2, xfailed=1)
    result.stdout.fnmatch_lines(["rank 1 skipped the test in call, rank 0 did not", "*SKIPPED*not today"])


def test_classes_fixtures_and_parameters(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("place")

@pytest.fixture
def broken():
    raise OSError("no disk")

@pytest.fixture
def untidy():
    yield
    raise OSError("no bin")

class TestIt:
    @pytest.mark.parametrize("word", ["a b", "c::d/[e]", "back\\\\slash"])
    @pytest.mark.ranks(2)
    def test_parameters(self, place, tmp_path, word):
        assert SIZE == 2
        (place / "own").mkdir()
        (tmp_path / "own").mkdir()

    @pytest.mark.ranks(2)
    def test_broken(self, broken):
        pass

    @pytest.mark.ranks(2)
    def test_untidy(self, untidy):
        pass
""",
    )
    result.assert_outcomes(passed=4, errors=2)
    result.stdout.fnmatch_lines(["*ERROR at setup of TestIt.test_broken*", "ranks 0,1: OSError: no disk", "*ERROR at teardown of TestIt*"])


BATCH = """
STARTED = []  # per process

@pytest.mark.parametrize("number", range(6))
@pytest.mark.ranks(2)
def test_it(number, tmp_path):
    STARTED.append(number)
    with open(FOLDER + f"/{number}.{RANK}", "w") as file:
        file.write(" ".join(map(str, [os.getppid(), *STARTED])))
    assert number != FAILING or RANK != FAILING_RANK

@pytest.mark.ranks(2, fresh=True)
def test_alone():
    assert STARTED == []
"""


def batch(pytester: pytest.Pytester, failing: int, *options: str) -> tuple[pytest.RunResult, list[list[str]]]:
    """Run BATCH; return the result and, by number, what the two ranks had run by then."""
    text = f"FOLDER, FAILING, FAILING_RANK = {str(pytester.path)!r}, {failing}, 1\n{BATCH}"
    result = run(pytester, text, *options)
    return result, [[(pytester.path / f"{n}.{r}").read_text().partition(" ")[2] for r in (0, 1)] for n in range(6)]


def test_a_job_of_its_own_for_each_test(pytester: pytest.Pytester) -> None:
    result, ran = batch(pytester, -1)
    result.assert_outcomes(passed=7)
    assert ran == [[str(n)] * 2 for n in range(6)]


def test_tests_in_a_row_share_a_job_when_asked(pytester: pytest.Pytester) -> None:
    result, ran = batch(pytester, -1, "--ranks-batch=4")
    result.assert_outcomes(passed=7)
    assert ran == [[text] * 2 for text in ("0", "0 1", "0 1 2", "0 1 2 3", "4", "4 5")]


def test_a_job_goes_on_with_the_next_file(pytester: pytest.Pytester) -> None:
    """The processes stay; what a file's fixtures set up has ended by then."""
    pytester.makepyfile(
        test_1="""
import os, pytest
ended = []

@pytest.fixture(scope="module", autouse=True)
def of_the_file():
    yield
    ended.append(os.getpid())

@pytest.mark.ranks(2)
def test_it():
    assert not ended
""",
        test_2="import os, pytest, test_1\n\n@pytest.mark.ranks(2)\ndef test_it():\n    assert test_1.ended == [os.getpid()]\n",
    )
    pytester.runpytest_subprocess(*LOAD, "--ranks-batch=2", timeout=300).assert_outcomes(passed=2)
    pytester.runpytest_subprocess(*LOAD, timeout=300).assert_outcomes(passed=1, failed=1)


def test_after_a_failure_the_rest_gets_a_new_job(pytester: pytest.Pytester) -> None:
    result, ran = batch(pytester, 2, "--ranks-batch=100")
    result.assert_outcomes(passed=6, failed=1)
    result.stdout.fnmatch_lines(["*test_it[[]n2-2[]]*", "rank 1: assert (*"])
    assert "rank 0" not in result.stdout.str()
    assert ran == [[text] * 2 for text in ("0", "0 1", "0 1 2", "3", "3 4", "3 4 5")]


def test_no_rank_begins_a_test_before_all_are_through_with_the_one_before(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
import time

@pytest.mark.ranks(3)
def test_a(tmp_path):
    if RANK == 2:
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline:  # a rank that runs ahead would have time to
            assert not os.path.exists(FOLDER + "/b")

@pytest.mark.ranks(3)
def test_b():
    open(FOLDER + "/b", "w").close()
""".replace("FOLDER", repr(str(pytester.path))),
        "--ranks-batch=2",
    )
    result.assert_outcomes(passed=2)


def test_a_hang_in_a_shared_job_is_that_tests_own(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
@pytest.mark.ranks(2)
def test_before():
    pass

@pytest.mark.ranks(2, timeout=3)
def test_hangs():
    if RANK:
        select.select([], [], [])

@pytest.mark.ranks(2)
def test_dies():
    if RANK:
        os._exit(3)

@pytest.mark.ranks(2)
def test_after():
    pass
""",
        "--ranks-batch=9",
    )
    result.assert_outcomes(passed=2, failed=2)
    result.stdout.fnmatch_lines(["*test_hangs*", "mpiexec, 2 ranks: not over after 3 s", "rank 1: ended while still running"])
    result.stdout.fnmatch_lines(["*test_dies*", "rank 1: died without a report"])
    assert "stack of rank 0" not in result.stdout.str()


def test_transports_by_option_and_by_mark(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
@pytest.mark.ranks(2)
def test_option(request):
    assert os.environ["PYMPX_TRANSPORT"] in request.node.name

@pytest.mark.ranks(1, transport="loop")
def test_mark():
    assert os.environ["PYMPX_TRANSPORT"] == "loop"
""",
        "--transports=shm,tcp",
        "-v",
    )
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(["*test_option[[]n2-shm[]] PASSED*", "*test_option[[]n2-tcp[]] PASSED*", "*test_mark[[]n1-loop[]] PASSED*"])


@pytest.mark.parametrize(
    ("mark", "message"),
    [
        ("ranks", "takes one number of ranks"),
        ("ranks(0)", "takes one number of ranks"),
        ("ranks(2, time=3)", "knows timeout, transport, launcher and fresh, not time"),
    ],
)
def test_a_wrong_mark_is_refused(pytester: pytest.Pytester, mark: str, message: str) -> None:
    result = run(pytester, f"@pytest.mark.{mark}\ndef test_it():\n    pass\n")
    assert result.ret != 0
    assert message in result.stdout.str() + result.stderr.str()


def test_reports_reach_junit(pytester: pytest.Pytester) -> None:
    result = run(pytester, "@pytest.mark.ranks(2)\ndef test_it():\n    assert RANK\n", "--junitxml=out.xml")
    result.assert_outcomes(failed=1)
    text = (pytester.path / "out.xml").read_text()
    assert 'tests="1"' in text
    assert "rank 0:" in text


def test_fold_keeps_different_texts_apart() -> None:
    assert ranks.fold({0: "at 0x12", 1: "b", 2: "at 0xfe"}) == [("ranks 0,2", "at 0x12"), ("rank 1", "b")]


def test_between_ordinary_tests_of_several_files(pytester: pytest.Pytester) -> None:
    """What an ordinary test shared with the test on ranks after it is torn down before the next file begins."""
    mixed = "def test_plain(): pass\n\n@pytest.mark.ranks(1)\ndef test_ranks(): pass\n"
    pytester.makepyfile(test_a=HEAD + mixed, test_b=HEAD + mixed)
    result = pytester.runpytest_subprocess(*LOAD, timeout=300)
    result.assert_outcomes(passed=4)
