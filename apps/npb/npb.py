"""NAS Parallel Benchmarks EP, CG and IS, classes S, W and A, verified against the published answers. See README.md beside this file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from pympx import MPI

sys.path.append(str(Path(__file__).resolve().parents[2]))  # after the installed packages, so that the source tree never hides them

from apps.common.audit import Audit
from apps.common.report import Traffic, report
from apps.common.volume import Volume
from apps.npb import cg, ep, is_
from apps.npb.outcome import Job, Outcome


def arguments(argv: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="npb.py", description=__doc__)
    parser.add_argument("benchmark", choices=["ep", "cg", "is"])
    parser.add_argument("--class", dest="npb_class", choices=["S", "W", "A"], default="S", help="size of the problem (default S)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results as JSON")
    return parser.parse_args(argv)


def _kernel(benchmark: str, npb_class: str) -> Callable[[Job], Outcome]:
    if benchmark == "ep":
        return lambda job: ep.run(job, ep.PROBLEMS[npb_class])
    if benchmark == "cg":
        return lambda job: cg.run(job, cg.PROBLEMS[npb_class])
    return lambda job: is_.run(job, is_.PROBLEMS[npb_class])


def main(argv: list[str], comm: MPI.Intracomm = MPI.COMM_WORLD) -> int:
    """Run on all ranks of `comm`; return the exit code: 0 verified, 1 not."""
    options = arguments(argv)
    name = options.benchmark.upper()
    rank, ranks = comm.Get_rank(), comm.Get_size()
    volume = Volume(rank, ranks)
    audit = Audit(comm, volume)
    traffic = Traffic(comm)
    try:
        outcome = _kernel(options.benchmark, options.npb_class)(Job(comm, volume, audit, traffic))
    except ValueError as error:
        if rank == 0:
            print(f"npb {name}: {error}", file=sys.stderr)
        return 2
    findings = audit.findings()
    verified = outcome.correct and not findings
    seconds = comm.allreduce(traffic.seconds, op=MPI.MAX)
    rate = outcome.operations / seconds / 1e6
    if rank == 0:
        print(f"NPB {name} class {options.npb_class} on {ranks} ranks")
        for line in [*outcome.lines, *(f"message audit: {finding}" for finding in findings)]:
            print(f"  {line}")
        iterations = f"iterations {outcome.iterations}, " if outcome.iterations else ""
        print(f"{iterations}time {seconds:.3f} s, {rate:.1f} Mop/s total")
        print(f"verification {'SUCCESSFUL' if verified else 'UNSUCCESSFUL'}", flush=True)
    details = {
        "class": options.npb_class,
        "iterations": outcome.iterations,
        "mops": rate,
        "findings": findings,
        **outcome.details,
    }
    report(comm, options.benchmark, verified, traffic, volume, details, options.json)
    return 0 if verified else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
