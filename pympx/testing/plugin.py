"""pytest plugin: run a test function on n ranks and merge what they say into one report.

    @pytest.mark.ranks(3)                      # or [1, 2, 3]: one test each
    def test_ring(comm): ...

Keyword arguments of the mark: ``timeout`` (seconds, default: ini ``ranks_timeout``, 60), ``transport`` (a name or a list of names
for PYMPX_TRANSPORT; default: the option ``--transports``), ``launcher`` ("mpiexec" or "run"; default: ``--ranks-launcher``),
``fresh=True`` (never share a job with other tests, see ``--ranks-batch``).

The outer session, the one that the user started, runs nothing of such a test itself: it starts a launcher with an inner session
per rank, which runs just that test (fixtures included) and writes its reports as JSON into a directory that both sides know.
With ``--ranks-batch N`` tests that want the same job (ranks, transport, launcher) are put side by side, and up to N of them share it;
no rank begins a test before all ranks are through with the one before, and after a failure the rest gets a new job.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from .endings import RankEnding, SessionEnding
from .jobs import RANK_VARIABLES, LauncherError
from .ranks import Batch, Plan, Rank, Run, merge

_RANKS_PARAM = "_pympx_ranks"
_TRANSPORT_PARAM = "_pympx_transport"
_REPORTS_OPTION = "--ranks-reports"
# `python -m pytest` puts the current directory in front of the path, `pytest` does not: the ranks do as this session does.
# Looked at while pytest loads its plugins, before a conftest.py can change the path.
_SAFE_PATH = not any(os.path.abspath(entry) == os.getcwd() for entry in sys.path)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("pympx", "tests on several ranks (pympx)")
    group.addoption("--transports", default="", metavar="A,B", help="run every test that is marked 'ranks' over each of these transports")
    group.addoption("--ranks-launcher", default="mpiexec", choices=["mpiexec", "run"], help="what starts the ranks (default mpiexec)")
    group.addoption("--ranks-batch", type=int, default=1, metavar="N", help="let up to N tests in a row share one job (default 1)")
    group.addoption(_REPORTS_OPTION, default="", help="internal: this session is one rank; where its reports go")
    parser.addini("ranks_timeout", "seconds that a test on several ranks may take, start of the ranks included", default="60")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "ranks(n, timeout=60, transport=None, launcher=None, fresh=False): run the test on n ranks (a list of numbers: one test each)",
    )
    directory = config.getoption("ranks_reports")
    if directory:
        config.pluginmanager.register(RankSession(config, Path(directory)), "pympx-rank-session")
        config.pluginmanager.register(RankEnding(), "pympx-ending")
    else:
        config.pluginmanager.register(OuterSession(config), "pympx-outer-session")
        config.pluginmanager.register(SessionEnding(), "pympx-ending")


def _as_list(value: object) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple, range)) else [value]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    mark = metafunc.definition.get_closest_marker("ranks")
    if mark is None:
        return
    where = metafunc.definition.nodeid
    counts = _as_list(mark.args[0] if len(mark.args) == 1 else None)
    if not counts or not all(isinstance(n, int) and n > 0 for n in counts):
        raise pytest.UsageError(f"{where}: the mark 'ranks' takes one number of ranks, or a list of numbers, not {mark.args!r}")
    unknown = set(mark.kwargs) - {"timeout", "transport", "launcher", "fresh"}
    if unknown:
        raise pytest.UsageError(f"{where}: the mark 'ranks' knows timeout, transport, launcher and fresh, not {', '.join(sorted(unknown))}")
    transports = _as_list(mark.kwargs.get("transport") or [name for name in metafunc.config.getoption("transports").split(",") if name])
    metafunc.fixturenames.append(_RANKS_PARAM)
    metafunc.parametrize(_RANKS_PARAM, counts, ids=[f"n{n}" for n in counts], indirect=True)
    if transports:
        metafunc.fixturenames.append(_TRANSPORT_PARAM)
        metafunc.parametrize(_TRANSPORT_PARAM, transports, ids=transports, indirect=True)


@pytest.fixture(name=_RANKS_PARAM)
def _ranks(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(name=_TRANSPORT_PARAM)
def _transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def comm() -> Any:
    """The world of the ranks that run this test: ``pympx.MPI.COMM_WORLD``."""
    from pympx import MPI

    return MPI.COMM_WORLD


def pytest_itemcollected(item: pytest.Item) -> None:
    if item.get_closest_marker("ranks") and not hasattr(item, "callspec"):
        raise pytest.UsageError(f"{item.nodeid}: only test functions and methods of plain classes run on ranks, not unittest's")


class OuterSession:
    """What the user's session does with tests that are marked `ranks`: start the ranks, merge, report."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._places: dict[pytest.Item, int] = {}
        self._items: list[pytest.Item] = []
        self._batch: Batch | None = None

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Put tests that can share a job side by side, those that want other jobs and those without the mark before them."""
        if int(self._config.getoption("ranks_batch")) > 1:
            items.sort(key=self._order)

    def _order(self, item: pytest.Item) -> tuple[int, int, str, str]:
        mark = item.get_closest_marker("ranks")
        if mark is None or not isinstance(item, pytest.Function):
            return 0, 0, "", ""
        return 2 - bool(mark.kwargs.get("fresh")), *self._wants(item)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._items = session.items
        self._places = {item: place for place, item in enumerate(session.items)}

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
        mark = item.get_closest_marker("ranks")
        if mark is None or not isinstance(item, pytest.Function):
            return None
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        timeout = float(mark.kwargs.get("timeout") or self._config.getini("ranks_timeout"))
        if self._batch and self._batch.next_test != item.nodeid:
            self._batch.close()
            self._batch = None
        plan = self._batch.plan if self._batch else self._plan(item)
        try:
            self._batch = self._batch or Batch(plan)
            run = self._batch.result(timeout)
        except (LauncherError, ValueError) as error:
            run = Run([Rank() for _ in range(plan.ranks)], trouble=str(error))
        for report in merge(item, plan, run):
            item.ihook.pytest_runtest_logreport(report=report)
        # the test before kept open what it shares with this one, which nobody else would close
        item.session._setupstate.teardown_exact(nextitem)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        # what an earlier test without the mark set up for this file, and the next test does not need
        item.session._setupstate.teardown_exact(nextitem)
        return True

    def pytest_sessionfinish(self) -> None:
        if self._batch:
            self._batch.close()

    def _wants(self, item: pytest.Function) -> tuple[int, str, str]:
        """Return what the item's job is like: ranks, launcher, transport ("": whatever the environment says)."""
        mark = item.get_closest_marker("ranks")
        assert mark is not None
        params = item.callspec.params
        launcher = str(mark.kwargs.get("launcher") or self._config.getoption("ranks_launcher"))
        return int(str(params[_RANKS_PARAM])), launcher, str(params.get(_TRANSPORT_PARAM, ""))

    def _batch_of(self, item: pytest.Function) -> list[pytest.Function]:
        """Return the items that share a job with this one, which is the first of them."""
        batch = [item]
        limit = 1 if hasattr(self._config, "workerinput") else int(self._config.getoption("ranks_batch"))
        for other in self._items[self._places[item] + 1 :]:
            marks = [which.get_closest_marker("ranks") for which in (item, other)]
            if len(batch) >= limit or not isinstance(other, pytest.Function) or any(m is None or m.kwargs.get("fresh") for m in marks):
                break
            if self._wants(other) != self._wants(item):
                break
            batch.append(other)
        return batch

    def _plan(self, item: pytest.Function) -> Plan:
        ranks, launcher, transport = self._wants(item)
        environment = dict(os.environ)
        if transport:
            environment["PYMPX_TRANSPORT"] = transport
        environment.pop("PYTEST_ADDOPTS", None)  # meant for this session: --junitxml, -x and their like
        batch = self._batch_of(item)
        # -p is read before files of arguments are: it has to stand on the command line
        own_name = self._config.pluginmanager.get_name(sys.modules[__name__]) or __name__
        names = dict.fromkeys([*self._config.option.plugins, own_name, "no:cacheprovider", "no:xdist"])
        plugins = [f"-p{name}" for name in names]
        return Plan(
            tests=[other.nodeid for other in batch],
            ranks=ranks,
            launcher=launcher,
            python=[sys.executable, *(["-P"] if _SAFE_PATH else []), "-m", "pytest", *plugins],
            arguments=[*(f"{other.path}::{other.nodeid.partition('::')[2]}" for other in batch), *self._arguments()],
            reports_option=_REPORTS_OPTION,
            environment=environment,
            directory=self._config.invocation_params.dir,
        )

    def _arguments(self) -> list[str]:
        """Return the options with which a rank's session collects and runs as this one would."""
        config, option = self._config, self._config.option
        arguments = ["--quiet", "--no-header", f"--rootdir={config.rootpath}", f"--transports={config.getoption('transports')}"]
        if config.inipath:
            arguments.append(f"-c{config.inipath}")
        arguments += [f"--override-ini={entry}" for entry in option.override_ini or []]
        arguments += [f"--pythonwarnings={entry}" for entry in option.pythonwarnings or []]
        arguments += [f"--tb={option.tbstyle}", f"--import-mode={option.importmode}"]
        arguments += ["--showlocals"] if option.showlocals else []
        arguments += ["--noconftest"] if option.noconftest else []
        arguments += [f"--confcutdir={option.confcutdir}"] if option.confcutdir else []
        return arguments


class RankSession:
    """One rank: run the tests that were asked for, write their reports, always leave with exit code 0.

    A code would make the launcher print its own banner and kill the other ranks before they could report.
    """

    def __init__(self, config: pytest.Config, directory: Path) -> None:
        self._config = config
        self._directory = directory
        order = json.loads((directory / "order.json").read_text())
        self._order: dict[str, int] = {test: index for index, test in enumerate(order["tests"])}
        self._ranks: int = order["ranks"]
        self._reports: list[dict[str, Any]] = []
        self._errors: list[str] = []
        values = [os.environ[name] for name in RANK_VARIABLES if os.environ.get(name, "").isdigit()]
        self._rank = int(values[0]) if values else 0
        # before pytest's own plugin reads it: no two ranks share a tmp_path, and none cleans up another's
        config.option.basetemp = str(directory / f"rank{self._rank}")

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=lambda item: self._order.get(item.nodeid, len(self._order)))
        missing = set(self._order) - {item.nodeid for item in items}
        self._errors += [f"this rank's session did not find the test {test}" for test in sorted(missing)]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        data["user_properties"] = [[str(key), str(value)] for key, value in report.user_properties]
        self._reports.append(data)
        self._write(f"{self._order[report.nodeid]}.json", self._reports)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        self._reports = []
        result = yield
        index = self._order[item.nodeid]
        failed = any(report["outcome"] == "failed" for report in self._reports)
        self._write(f"{index}.done", "failed" if failed else "passed")
        if index + 1 < len(self._order) and self._any_failed(index):
            item.session.shouldstop = "a test failed on some rank"
        return result

    def _any_failed(self, index: int) -> bool:
        """Wait until all ranks are through with a test (the outer session ends those that never are); say if one failed."""
        for number in range(self._ranks):
            mark = self._directory / f"rank{number}.{index}.done"
            while not mark.exists():
                time.sleep(0.002)
            if json.loads(mark.read_text()) == "failed":
                return True
        return False

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._errors.append(report.longreprtext)

    @pytest.hookimpl(wrapper=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None, Any, Any]:
        outcome = yield
        self._write("end.json", self._errors)
        session.exitstatus = pytest.ExitCode.OK
        return outcome

    def _write(self, name: str, content: object) -> None:
        """Replace one of this rank's files in one step: the outer session may read it at any moment."""
        draft = self._directory / f"rank{self._rank}.draft"
        draft.write_text(json.dumps(content))
        draft.replace(self._directory / f"rank{self._rank}.{name}")
