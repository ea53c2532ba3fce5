"""Run a multi-rank command under a time limit; when it hangs, dump the C and Python stacks of every rank, then end it.

As a command: ``python -m pympx.testing.hang --timeout 60 -- mpiexec -n 4 python prog.py``. It exits with the command's code,
or with 124 after a time-out (the stacks go to stderr). As a library: `run_ranks`.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from .jobs import Job, LauncherError, Process, launcher_command, mpiexec_path

#: exit code of the command after a time-out, as timeout(1) has it
TIMED_OUT = 124
_DUMP_LIMIT_S = 30.0


@dataclass(frozen=True)
class Result:
    """How a run ended. `stacks` maps "rank N" (or "pid N") to the dump of a rank that hung; empty without a time-out."""

    returncode: int
    stdout: str
    stderr: str
    timed_out: bool
    stacks: dict[str, str]


def _tool(name: str) -> str | None:
    """Find a program beside the interpreter, else on the PATH."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else shutil.which(name)


def _dump_by(command: list[str]) -> tuple[str, str]:
    """Run a dumper; return (its output, "") or ("", why not)."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_DUMP_LIMIT_S, stdin=subprocess.DEVNULL, check=False
        )
    except subprocess.TimeoutExpired:
        return "", f"{Path(command[0]).name} gave nothing within {_DUMP_LIMIT_S:.0f} s"
    if done.returncode == 0 and done.stdout.strip():
        return done.stdout, ""
    lines = (done.stderr or done.stdout).strip().splitlines()
    why = next((line for line in lines if line.startswith("Error")), lines[-1] if lines else "no output")
    return "", f"{Path(command[0]).name}: {why}"


def dump_stacks(process: Process) -> str:
    """Return the C and Python stacks of one process as text; never raises: what went wrong stands in the text."""
    reasons = []
    pid = str(process.pid)
    py_spy = _tool("py-spy")
    if py_spy:
        text, why = _dump_by([py_spy, "dump", "--native", "--pid", pid])
        if text:
            return text
        reasons.append(why)
    gdb = _tool("gdb")
    parts = []
    if gdb:
        text, why = _dump_by([gdb, "-nx", "-batch", "-p", pid, "-ex", "thread apply all bt"])
        parts.append(text)
        reasons.append(why)
    if py_spy:  # its native unwinder failed; the Python frames alone still tell where the program stands
        text, why = _dump_by([py_spy, "dump", "--pid", pid])
        parts.append(text)
        reasons.append(why)
    if not any(parts) and not Path(f"/proc/{pid}").exists():
        return "[it ended while its stack was being read]"
    if not py_spy and not gdb:
        reasons.append("neither py-spy nor gdb is installed: pip install py-spy")
    return "\n".join([*filter(None, parts), *(f"[{why}]" for why in reasons if why)])


def dump_job(job: Job, numbers: Sequence[int] | None = None) -> dict[str, str]:
    """Return the stacks of all live ranks of a job (or only of some, by number) by label, two dumps at a time."""
    ranks = [process for process in job.ranks() if numbers is None or process.rank is None or process.rank in numbers]
    labels = []
    for process in ranks:
        label = f"pid {process.pid}" if process.rank is None else f"rank {process.rank}"
        labels.append(label if label not in labels else f"{label} (pid {process.pid})")
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(labels, pool.map(dump_stacks, ranks), strict=True))


def format_stacks(stacks: Mapping[str, str]) -> str:
    """Return a dump as text, one headed block per rank."""
    return "\n".join(f"--- stack of {label} ---\n{text.rstrip()}" for label, text in stacks.items())


def run_ranks(
    argv: Sequence[str],
    n: int,
    *,
    launcher: str = "mpiexec",
    env: Mapping[str, str] | None = None,
    timeout: float = 60.0,
    cwd: str | Path | None = None,
) -> Result:
    """Run `argv` on `n` ranks for at most `timeout` seconds; nothing of it is alive afterwards.

    `launcher` is "mpiexec" (the one beside the interpreter) or "run" (``python -m pympx run``); `env` is the whole environment
    (default: this process's). Raises LauncherError when there is no such mpiexec. A time-out is no exception: see Result.
    """
    command = launcher_command(argv, n, launcher)
    with (
        tempfile.TemporaryFile() as out,  # files, not pipes: a stray process cannot keep us waiting for their end
        tempfile.TemporaryFile() as err,
        Job(command, env=env, cwd=cwd, stdout=out, stderr=err) as job,
    ):
        code = job.wait(timeout)
        stacks = dump_job(job) if code is None else {}
        job.kill()
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    return Result(job.process.returncode if code is None else code, texts[0], texts[1], code is None, stacks)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m pympx.testing.hang", description=__doc__.partition("\n")[0])
    parser.add_argument("--timeout", type=float, default=60.0, metavar="S", help="seconds until the stacks are dumped (default 60)")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="for example: mpiexec -n 4 python prog.py")
    options = parser.parse_args(argv)
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        parser.error("no command given: put it after --")
    # a background process group that reads a terminal is stopped by it
    stdin = subprocess.DEVNULL if sys.stdin.isatty() else None
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that the job is ended, too
    started = time.monotonic()
    try:
        if command[0] == "mpiexec":
            command[0] = mpiexec_path()
        job = Job(command, stdin=stdin)
    except LauncherError as error:
        print(f"hang: {error}", file=sys.stderr)
        return 127
    except OSError as error:
        print(f"hang: cannot start {command[0]}: {error.strerror}", file=sys.stderr)
        return 127
    with job:
        code = job.wait(options.timeout)
        if code is not None:
            return code if code >= 0 else 128 - code
        stacks = dump_job(job)
        sys.stdout.flush()
        print(f"hang: not over after {time.monotonic() - started:.0f} s: {' '.join(command)}", file=sys.stderr)
        print(format_stacks(stacks), file=sys.stderr, flush=True)
    return TIMED_OUT


if __name__ == "__main__":
    sys.exit(main())
