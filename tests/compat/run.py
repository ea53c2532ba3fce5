"""The compat lane: mpi4py's own tests on pympx, against mpi4py on MPICH in the same run.

``python tests/compat/run.py`` fetches what it needs with pip into build/compat (never committed): the sdist of mpi4py 4.1.2 for its test
folder, and a virtual environment, the peer, with mpi4py, MPICH and the NumPy version of this environment. Each module runs with
n = 1, 2, 3 ranks under Hydra twice: in the peer, and in this environment through ``python -m pympx.as_mpi4py``, where mpi4py's Python
files are the peer's, put on the path by a link that shows nothing else of it. Every rank writes the outcome of every test (rank.py).

Before that, every public name of mpi4py.MPI and of its classes must exist here, of the same kind, integers with the same value.

A test id is good if on all ranks it passes here whenever it passes on all ranks in the peer; a skip is no pass. Exceptions stand in
expected.toml, at most 5 % of the ids, none a hang or a crash. Here no MPI library may be loaded.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
import venv
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from pathlib import Path

import numpy

from pympx.testing.hang import format_stacks, run_ranks

MPI4PY, MPICH = "4.1.2", "5.0.2"
MODULES = (
    *("test_p2p_buf", "test_p2p_obj", "test_request", "test_status", "test_msgzero", "test_environ", "test_ulfm", "test_buffer"),
    *("test_cco_buf", "test_cco_vec", "test_cco_obj"),
)
HERE = Path(__file__).resolve().parent
CACHE = HERE.parents[1] / "build" / "compat"
LIMIT_S = {"peer": 240.0, "pympx": 90.0}
#: addresses in MPICH, and what this mpi4py cannot know of MPICH's extensions
OTHER_VALUES = ("UNWEIGHTED", "WEIGHTS_EMPTY", "ERR_ABI", "ERR_PROC_FAILED", "ERR_PROC_FAILED_PENDING", "ERR_REVOKED")
#: how many of the ids may be expected to fail
SHARE = 0.05


@dataclass
class Run:
    """What one module gave on n ranks: `outcomes` by id, the worst of the ranks; `broken` says how the run as a whole failed."""

    outcomes: dict[str, tuple[str, str]] = field(default_factory=dict)
    broken: str = ""
    seconds: float = 0.0


def _pip(python: str | Path, *words: str) -> None:
    subprocess.run([str(python), "-m", "pip", "--disable-pip-version-check", "-q", *words], check=True)


def prepare() -> tuple[Path, Path, Path]:
    """Fetch what is not there yet; return (folder of mpi4py's tests, the peer's Python, folder to put on the path)."""
    CACHE.mkdir(parents=True, exist_ok=True)
    sources = CACHE / f"mpi4py-{MPI4PY}"
    if not sources.exists():
        print(f"fetching the sources of mpi4py {MPI4PY}", flush=True)
        _pip(sys.executable, "download", "--no-deps", "--no-binary", "mpi4py", "-d", str(CACHE), f"mpi4py=={MPI4PY}")
        shutil.unpack_archive(CACHE / f"mpi4py-{MPI4PY}.tar.gz", CACHE / "unpacked")
        (CACHE / "unpacked" / f"mpi4py-{MPI4PY}").rename(sources)
    wanted = [f"mpi4py=={MPI4PY}", f"mpich=={MPICH}", f"numpy=={numpy.__version__}"]
    peer, stamp = CACHE / "peer", CACHE / "peer.stamp"
    python = peer / "bin" / "python"
    if not stamp.exists() or stamp.read_text().split() != wanted:
        print(f"making the peer: {' '.join(wanted)}", flush=True)
        venv.create(peer, with_pip=True, clear=True)
        _pip(python, "install", *wanted)
        stamp.write_text(" ".join(wanted))
    path = CACHE / "path"
    path.mkdir(exist_ok=True)
    link = path / "mpi4py"
    link.unlink(missing_ok=True)
    link.symlink_to(next((peer / "lib").glob("python3*")) / "site-packages" / "mpi4py")
    return sources / "test", python, path


def run(side: str, module: str, n: int, tests: Path, python: Path, path: Path, patience: float) -> Run:
    """Run one module on n ranks of one side under a time limit, with the stacks of all ranks if it hangs."""
    out = CACHE / "results" / f"{side}-{module}-{n}"
    out.mkdir(parents=True, exist_ok=True)
    for stale in out.iterdir():
        stale.unlink()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    words = [str(HERE / "rank.py"), str(tests), module, str(out)]
    if side == "peer":
        argv = [str(python), *words]
    else:
        argv = [sys.executable, "-P", "-m", "pympx.as_mpi4py", *words]
        environment["PYTHONPATH"] = str(path)
    started = time.monotonic()
    result = run_ranks(argv, n, env=environment, timeout=LIMIT_S[side] * patience, cwd=out)
    found = _read(out, n)
    found.seconds = time.monotonic() - started
    if result.timed_out:
        found.broken = f"not over after {LIMIT_S[side] * patience:.0f} s\n{format_stacks(result.stacks)}"
    elif result.returncode and not found.broken:
        found.broken = f"exit code {result.returncode}"
    if side == "pympx" and result.stderr and not found.broken:
        found.broken = "something on stderr"
    if found.broken:
        found.broken += "\n" + result.stderr[-3000:]
    return found


def _read(out: Path, n: int) -> Run:
    found = Run()
    for rank in range(n):
        report = out / f"rank{rank}.jsonl"
        entries = [json.loads(line) for line in report.read_text().splitlines()] if report.exists() else []
        running, done = None, False
        for entry in entries:
            if "start" in entry:
                running = entry["start"]
            elif "end" in entry:
                running = None
                _worst(found, entry["end"], entry["outcome"], entry["detail"] and f"rank {rank}: {entry['detail']}")
            else:
                done = True
                if entry["libraries"] and "pympx" in out.name.partition("-")[0]:
                    found.broken = f"rank {rank} loaded {', '.join(entry['libraries'])}"
        if running is not None:
            _worst(found, running, "stopped", f"rank {rank} never ended it")
        if not done and not found.broken:
            found.broken = f"rank {rank} ended early" + (f", in {running}" if running else "")
    return found


def _worst(found: Run, name: str, outcome: str, detail: str) -> None:
    order = ("pass", "skip", "fail", "error", "stopped")
    if name not in found.outcomes or order.index(outcome) > order.index(found.outcomes[name][0]):
        found.outcomes[name] = (outcome, detail)


def compare_names(python: Path) -> tuple[int, list[str]]:
    """Return (how many of mpi4py.MPI's public names agree, the others with what is wrong)."""
    sides = []
    for interpreter, module in ((str(python), "mpi4py.MPI"), (sys.executable, "pympx.MPI")):
        done = subprocess.run(
            [interpreter, "-P", str(HERE / "names.py"), module], check=True, capture_output=True, text=True, timeout=60, cwd=CACHE
        )
        sides.append(json.loads(done.stdout))
    theirs, ours = sides
    wrong = []
    for name, (kind, value) in theirs.items():
        if name not in ours:
            wrong.append(f"MPI.{name} is missing")
        elif ours[name][0] != kind:
            wrong.append(f"MPI.{name} is a {ours[name][0]}, with mpi4py a {kind}")
        elif value is not None and ours[name][1] != value and name not in OTHER_VALUES:
            wrong.append(f"MPI.{name} is {ours[name][1]}, with mpi4py on MPICH {value}")
    return len(theirs) - len(wrong), wrong


def write_junit(path: Path, good: list[str], bad: dict[str, str]) -> None:
    """Write the outcomes as a JUnit report: ids that passed, and what failed with the reason."""
    suite = ET.Element("testsuite", name="compat", tests=str(len(good) + len(bad)), failures=str(len(bad)))
    for name in good:
        ET.SubElement(suite, "testcase", name=name)
    for name, why in bad.items():
        ET.SubElement(ET.SubElement(suite, "testcase", name=name), "failure").text = why
    ET.ElementTree(suite).write(path, encoding="unicode")


def main() -> int:
    """Command line; returns the exit code: 0 if every id that passes in the peer passes here, or is expected not to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--modules", default=",".join(MODULES), help="only these, separated by commas")
    parser.add_argument("--ranks", default="1,2,3", help="only these numbers of ranks")
    parser.add_argument("--patience", type=float, default=1.0, help="multiplies the time limits (in the virtual machine)")
    parser.add_argument("--fetch", action="store_true", help="fetch and make what is needed, and end")
    options = parser.parse_args()
    modules, numbers = options.modules.split(","), [int(n) for n in options.ranks.split(",")]
    expected: dict[str, str] = tomllib.loads((HERE / "expected.toml").read_text())
    tests, python, path = prepare()
    if options.fetch:
        return 0
    good: list[str] = []
    bad: dict[str, str] = {}
    failed_ids: set[str] = set()
    ids: set[str] = set()
    agreeing, problems = compare_names(python)
    print(f"names: {agreeing} of mpi4py.MPI's exist here, of the same kind; {len(problems)} do not", flush=True)
    for module in modules:
        for n in numbers:
            peer = run("peer", module, n, tests, python, path, options.patience)
            ours = run("pympx", module, n, tests, python, path, options.patience)
            if peer.broken:
                print(f"{module} n={n}: mpi4py on MPICH: {peer.broken}", flush=True)
            if ours.broken:
                problems.append(f"{module} n={n}: {ours.broken}")
            passing = [name for name, (outcome, _) in peer.outcomes.items() if outcome == "pass"]
            ids.update(peer.outcomes)
            if not passing:
                problems.append(f"{module} n={n}: nothing passes with mpi4py on MPICH, so nothing was compared")
            lost = 0
            for name in passing:
                outcome, detail = ours.outcomes.get(name, ("missing", "it did not run"))
                if outcome == "pass":
                    good.append(f"{name} n={n}")
                    continue
                lost += 1
                failed_ids.add(name)
                if name not in expected or outcome in ("stopped", "missing"):
                    bad[f"{name} n={n}"] = f"{outcome}: {detail}"
            more = sum(outcome == "pass" and peer.outcomes.get(name, ("", ""))[0] != "pass" for name, (outcome, _) in ours.outcomes.items())
            print(
                f"{module} n={n}: {len(passing)} pass on MPICH ({peer.seconds:.1f} s), {len(passing) - lost} of them here "
                f"({ours.seconds:.1f} s), {more} only here",
                flush=True,
            )
    for name, why in bad.items():
        print(f"FAILED {name}: {why}")
    if set(modules) == set(MODULES) and set(numbers) == {1, 2, 3}:
        problems += [f"expected.toml: {name} does not exist" for name in expected if name not in ids]
        problems += [f"expected.toml: {name} passes now: remove it" for name in expected if name in ids and name not in failed_ids]
        if len(expected) > SHARE * len(ids):
            problems.append(f"expected.toml: {len(expected)} of {len(ids)} ids, more than {SHARE:.0%}")
    for problem in problems:
        print(f"FAILED {problem}")
    print(f"{len(ids)} ids, {len(expected)} of them expected to fail; {len(numbers) * len(modules)} runs on each side")
    write_junit(CACHE / "junit.xml", good, bad | dict.fromkeys(problems, ""))
    print(f"{len(good) + agreeing} passed, {len(bad) + len(problems)} failed")
    return 1 if bad or problems else 0


if __name__ == "__main__":
    sys.exit(main())
