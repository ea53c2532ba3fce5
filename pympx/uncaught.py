"""Exceptions that nobody catches: the others hear of it, their calls raise, every `finally` runs, it is shown once, the job ends.

Each rank tells the others how it ends (engine/raised.h carries it): RAISED with its traceback, which makes their pending and later calls
raise; FOLLOWED when its exception is the consequence of another rank's; INTERRUPTED by Ctrl-C, which makes nobody's calls raise, because
every rank gets its own signal. The lowest rank that has not merely followed waits until all that live have told how they end, at most
`PATIENCE_S`, shows all tracebacks, identical ones once, and ends the job through the launcher. The rest wait to be ended; if that does not
happen the next one steps in. Where nobody can end the others (Bootstrap.ends_others) they leave once it was shown.

Hooks run in the thread that raised, with the GIL; one thread per process tells, the first one.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NoReturn

from . import config
from .bindings import runtime as engine
from .bootstrap.base import Bootstrap
from .bootstrap.ending import leave

#: kinds of report. SHOWN: everything was shown, leave. TEST_FAILED: of a session of pytest, which goes on until it says DONE.
RAISED, FOLLOWED, INTERRUPTED, STOPPED, SHOWN, TEST_FAILED, DONE = range(1, 8)
#: the kinds of ranks that did not merely follow another one; STOPPED: interrupted, and the others had to be told
_PRIMARY = (RAISED, INTERRUPTED, STOPPED)
_ENDS_NOBODY, _ENDS_JOB, _ENDS_PEER = 0, 1, 2  # as engine/raised.h

#: seconds that the others have to end, from the report to the end of the job
PATIENCE_S = 0.8
#: seconds after which an interrupted rank makes the others' calls raise, because they got no signal
_SIGNAL_S = 0.3
#: seconds after which the next one steps in: another rank that raised, one that followed
_NEXT_S, _LAST_S = 1.0, 5.0
#: seconds in which what explains the failure of a rank may arrive
_EXPLAINED_S = 0.2
#: seconds in which the launcher may end the job, with the right code, when it is a rank's death that the others raise for
_LAUNCHER_S = 0.5
#: seconds in which a rank may hear of a lower one that tells everybody, before it opens links to everybody itself
_LINKS_S = 0.02
_TEXT_LIMIT = 16 << 10
_SHOWN_LIMIT = 8
_DEATH = "MPI.Exception: MPI_ERR_PROC_FAILED"


@dataclass(frozen=True)
class Report:
    """How a rank ends. `text`: its error in one line, then what is to be shown, if anything."""

    rank: int
    kind: int
    text: str


#: returns this rank's tie to its job when there are others to care for
_job: Callable[[], Bootstrap | None]
#: returns whether messages can be sent
_is_up: Callable[[], bool]
_claim = threading.Lock()
_teller: threading.Thread | None = None
_own: Report | None = None
_main_is_through = threading.Event()


def install(job: Callable[[], Bootstrap | None], is_up: Callable[[], bool]) -> None:
    """Set the hooks. `job` returns this rank's tie to a job with others, else None; `is_up` whether messages can be sent."""
    global _job, _is_up
    _job, _is_up = job, is_up
    show, show_of_thread = sys.excepthook, threading.excepthook

    def hook(kind: type[BaseException], value: BaseException, trace: TracebackType | None) -> None:
        boot = _job()
        if boot is None or hasattr(sys, "ps1"):  # at a prompt the program goes on
            show(kind, value, trace)
            return
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the end has begun
        _end(boot, value, _formatted(value) if show is sys.__excepthook__ else _captured(value, show, kind, value, trace))

    def hook_of_thread(args: Any) -> None:
        boot = _job()
        if boot is None or args.exc_type is SystemExit:
            show_of_thread(args)
            return
        value = args.exc_value or args.exc_type()
        name = args.thread.name if args.thread else threading.get_ident()
        plain = show_of_thread is threading.__excepthook__
        _end(boot, value, f"Exception in thread {name}:\n{_formatted(value)}" if plain else _captured(value, show_of_thread, args))

    sys.excepthook, threading.excepthook = hook, hook_of_thread


def _captured(value: BaseException, show: Callable[..., object], *args: Any) -> str:
    """Return what a hook that the program chose writes to stderr; the traceback if it fails."""
    with contextlib.redirect_stderr(io.StringIO()) as out:
        try:
            show(*args)
        except Exception:
            return _formatted(value)
    return out.getvalue()


def _formatted(value: BaseException) -> str:
    return "".join(traceback.format_exception(value))


def summary(value: BaseException) -> str:
    """Return an exception as one line."""
    lines = "".join(traceback.format_exception_only(value)).strip().splitlines()
    line = next((line for line in lines if line and not line.startswith(" ")), type(value).__name__)
    return line.replace("pympx.api.errors.Exception", "MPI.Exception", 1)


def hold() -> bool:
    """Return whether this thread ends the job, so that there is nothing to leave in order; wait for the end if another thread does."""
    if _teller is not None and _teller is not threading.current_thread():
        _wait_for_the_end()
    return _teller is not None


def _wait_for_the_end() -> None:
    _main_is_through.set()
    time.sleep(_LAST_S + 1)
    leave(1, "", os.getpid())


# ---- one rank's end ----


def _end(boot: Bootstrap, value: BaseException, text: str) -> None:
    """Tell, wait, show, end. Returns only in a thread that is not the first of this process to end it."""
    global _teller
    start = time.monotonic()
    interrupted = isinstance(value, KeyboardInterrupt)
    with _claim:
        first = _teller is None
        _teller = _teller or threading.current_thread()
    if not first:
        if not _follows(value):
            _write(f"rank {boot.rank}, too:\n{text}")
        if threading.current_thread() is threading.main_thread():
            _wait_for_the_end()
        return
    if not _is_up():
        _end_early(boot, 130 if interrupted else 1, text)
    if config.get("PYMPX_KEEP_GOING"):
        _end_alone(boot, value, text)
    if interrupted:
        kind = INTERRUPTED
    elif _follows(value) and _others_raised(_EXPLAINED_S):
        kind, text = FOLLOWED, "" if _is_process_failure(value) else text
    else:
        kind = RAISED
    own = Report(boot.rank, kind, _report_text(value, text))
    if kind == FOLLOWED:
        _run_exit_functions()
        _tell(own)
    else:
        _tell(own)
        _run_exit_functions()
    _finish(boot, own, start)


def _end_early(boot: Bootstrap, code: int, text: str) -> NoReturn:
    """No message can be sent yet. All ranks tend to fail alike: rank 0 shows it, the others only if it does not end the job."""
    if boot.rank != 0:
        time.sleep(0.5)
    _write(f"rank {boot.rank}:\n{text}")
    boot.abort(code)


def _end_alone(boot: Bootstrap, value: BaseException, text: str) -> NoReturn:
    """The others shall go on: tell them of it, wait until they have heard, leave."""
    engine.tell_raised(RAISED, _ENDS_PEER, _report_text(value, "").encode("utf-8", "replace"), True)
    _write(f"rank {boot.rank}:\n{text}")
    _run_exit_functions()
    await_reports(PATIENCE_S)
    leave(130 if isinstance(value, KeyboardInterrupt) else 1, "", os.getpid())


def _run_exit_functions() -> None:
    """Do what the interpreter would do at its exit, for the job's end leaves it no time. Only the main thread may."""
    if threading.current_thread() is threading.main_thread():
        with contextlib.suppress(BaseException):
            atexit._run_exitfuncs()


def _report_text(value: BaseException, text: str) -> str:
    if len(text) > _TEXT_LIMIT:
        text = f"{text[: _TEXT_LIMIT // 2]}\n  [...]\n{text[-_TEXT_LIMIT // 2 :]}"
    return f"{summary(value)}\n{text}"


def _chain(value: BaseException) -> Iterator[BaseException]:
    """Yield an exception, what caused it, and what it was raised during."""
    seen: list[BaseException] = []
    left: list[BaseException | None] = [value]
    while left:
        each = left.pop()
        if each is not None and not any(each is other for other in seen):
            seen.append(each)
            yield each
            left += [each.__cause__, each.__context__, *getattr(each, "exceptions", ())]


def _is_process_failure(value: BaseException) -> bool:
    from .api.error_classes import ERR_PROC_FAILED
    from .api.errors import Exception as MpiError

    return isinstance(value, MpiError) and value.Get_error_class() == ERR_PROC_FAILED


def _follows(value: BaseException) -> bool:
    return any(_is_process_failure(each) for each in _chain(value))


def _others_raised(seconds: float = 0.0) -> bool:
    """Return whether another rank has raised, as soon as it is known, or after `seconds`."""
    end = time.monotonic() + seconds
    news = _news()
    while not (raised := any(report.kind in (RAISED, STOPPED, TEST_FAILED) for report in news.reports)):
        left = end - time.monotonic()
        if left <= 0:
            break
        news = _news(news.version, left)
    return raised


def follows(value: BaseException) -> bool:
    """Return whether an exception is the consequence of one that was told of before, by whatever rank."""
    return _follows(value) and (_others_raised() or _own is not None)


# ---- the others ----


@dataclass(frozen=True)
class _News:
    """Reports of the others, the last of each; ranks that live."""

    version: int
    reports: list[Report]
    living: list[int]

    def awaited(self, but: Container[int] = (TEST_FAILED,)) -> list[int]:
        """Return the ranks that live and have told nothing yet, `but` for reports of these kinds."""
        told = {report.rank for report in self.reports if report.kind not in but}
        return [rank for rank in self.living if rank not in told]


def _news(known: int = 0, seconds: float = 0.0) -> _News:
    """Return what is known; before, wait at most `seconds` for something newer than version `known`."""
    try:
        version, told, living = engine.news(known, seconds)
    except Exception:  # a user's reduction was due, or a transport failed: the job ends in any case
        version, told, living = engine.news(0, 0.0)
    return _News(version, [Report(rank, kind, text.decode("utf-8", "replace")) for rank, kind, text in told], living)


def reports() -> list[Report]:
    """Return what the other ranks have told, the last of each."""
    return _news().reports


def await_reports(seconds: float, but: Container[int] = (TEST_FAILED,)) -> None:
    """Wait until all others that live have told something, `but` for reports of these kinds, at most `seconds`."""
    end = time.monotonic() + seconds
    news = _news()
    while news.awaited(but) and (left := end - time.monotonic()) > 0:
        news = _news(news.version, left)


def look() -> None:
    """Take what has arrived."""
    _news(_news().version, 1e-4)


def tell(kind: int, text: str) -> None:
    """Tell the others `text` as a report of `kind`; TEST_FAILED makes their calls raise."""
    _tell(Report(own_rank(), kind, text))


def own_rank() -> int:
    """Return this process's rank in a job with others, -1 where there are none or messages cannot be sent."""
    boot = _job() if _is_up() else None
    return -1 if boot is None else boot.rank


def _tell(own: Report) -> None:
    """Those whom we have a link to at once; the rest too, unless a lower rank does that."""
    global _own
    _own = own
    flags = _ENDS_JOB if own.kind in (RAISED, STOPPED, TEST_FAILED) else _ENDS_NOBODY
    text = own.text.encode("utf-8", "replace")
    engine.tell_raised(own.kind, flags, text, False)
    if own.kind not in (RAISED, INTERRUPTED, STOPPED, TEST_FAILED):
        return
    end = time.monotonic() + (_LINKS_S if own.rank else 0.0)
    news = _news()
    while not any(report.rank < own.rank and report.kind in (*_PRIMARY, TEST_FAILED) for report in news.reports):
        left = end - time.monotonic()
        if left <= 0:
            break
        news = _news(news.version, left)
    else:
        return
    engine.tell_raised(own.kind, flags, text, True)


def _finish(boot: Bootstrap, own: Report, start: float) -> NoReturn:
    """Wait for the others; then show everything and end the job, or be ended. `start`: when the exception came up here."""
    news = _news()
    while True:
        spent = time.monotonic() - start
        primaries = {report.rank: report for report in (*news.reports, own) if report.kind in _PRIMARY}
        lowest = min(primaries, default=own.rank)
        if any(report.kind == SHOWN for report in news.reports):
            break
        if not boot.ends_others and lowest != own.rank and lowest not in news.living:
            break  # it showed everything before it went
        if own.kind == INTERRUPTED and news.awaited() and lowest == own.rank and spent >= _SIGNAL_S:
            own = Report(own.rank, STOPPED, own.text)
            _tell(own)
        through = threading.current_thread() is threading.main_thread() or _main_has_ended()
        limit = PATIENCE_S if lowest == own.rank else PATIENCE_S + _NEXT_S if own.kind in _PRIMARY else _LAST_S
        only_deaths = boot.ends_others and all(report.text.startswith(_DEATH) for report in primaries.values())
        first = _LAUNCHER_S if only_deaths and primaries else 0.0
        if spent >= limit or (lowest == own.rank and not news.awaited() and through and spent >= first):
            _show([*news.reports, own])
            engine.tell_raised(SHOWN, _ENDS_NOBODY, b"", False)
            boot.abort(1 if any(report.kind not in (INTERRUPTED, STOPPED) for report in primaries.values()) else 130)
        soon = _SIGNAL_S if own.kind == INTERRUPTED and spent < _SIGNAL_S else first if spent < first else limit
        news = _news(news.version, min(soon - spent, 10.0 if through else 0.01))
    if boot.ends_others:
        time.sleep(_LAST_S)
    leave(130 if own.kind in (INTERRUPTED, STOPPED) else 1, "", os.getpid())


def _main_has_ended() -> bool:
    return _main_is_through.is_set() or not threading.main_thread().is_alive()


# ---- what is shown ----


def ranges(ranks: Iterable[int]) -> str:
    """Return ranks for people: "rank 2", "ranks 0-3,7"."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    shown = ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
    return f"rank {shown}" if shown.isdecimal() else f"ranks {shown}"


def _show(told: list[Report]) -> None:
    """Write the tracebacks, identical ones once (addresses apart), and a line each for what else was raised on the way out."""
    groups: dict[str, list[Report]] = {}
    for report in sorted(told, key=lambda report: report.rank):
        if report.kind in _PRIMARY:
            groups.setdefault(re.sub(r"0x[0-9a-fA-F]+", "0x", report.text), []).append(report)
    parts = [f"{ranges(each.rank for each in group)}:\n{group[0].text.partition(chr(10))[2]}" for group in groups.values()]
    left_out = len(parts) - _SHOWN_LIMIT
    if left_out > 0:
        parts[_SHOWN_LIMIT:] = [f"{left_out} more tracebacks that differ from these were left out\n"]
    for report in told:
        line, _, rest = report.text.partition("\n")
        if report.kind == FOLLOWED and rest:
            parts.append(f"rank {report.rank}, while it ended: {line}\n")
    _write("".join(part if part.endswith("\n") else part + "\n" for part in parts))


def _write(text: str) -> None:
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    with contextlib.suppress(Exception):
        sys.stderr.write(text)
        sys.stderr.flush()
