"""2-D heat conduction in a plate: Jacobi's iteration over blocks, verified against closed forms. See README.md beside this file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pympx import MPI

sys.path.append(str(Path(__file__).resolve().parents[2]))  # after the installed packages, so that the source tree never hides them

from apps.common.audit import Audit
from apps.common.report import Traffic, report
from apps.common.volume import Volume
from apps.heat import analytic
from apps.heat.decomposition import Decomposition, decompose
from apps.heat.halo import Halo

Array = NDArray[np.float64]


def arguments(argv: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="heat.py", description=__doc__)
    parser.add_argument("--size", type=int, default=64, metavar="N", help="interior points per side (default 64)")
    parser.add_argument("--tolerance", type=float, default=1e-8, help="stop when the root mean square update is below this (default 1e-8)")
    parser.add_argument("--iterations", type=int, default=200_000, help="stop after this many iterations (default 200000)")
    parser.add_argument("--interval", type=int, default=50, help="iterations between two looks at the residual (default 50)")
    parser.add_argument("--png", type=Path, metavar="FILE", help="write a picture of the plate (needs matplotlib)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results as JSON")
    options = parser.parse_args(argv)
    if options.size < 4 or options.iterations < 1 or options.interval < 1:
        parser.error("--size must be at least 4, --iterations and --interval at least 1")
    return options


class Progress:
    """A progress bar on rank 0 when a person is watching, else nothing."""

    def __init__(self, rank: int, total: int) -> None:
        self._bar = None
        if rank == 0 and sys.stderr.isatty():
            from tqdm import tqdm  # type: ignore[import-untyped, unused-ignore]

            self._bar = tqdm(total=total, unit="it", desc="heat")

    def advance(self, steps: int, residual: float) -> None:
        """Show `steps` more iterations and the residual."""
        if self._bar is not None:
            self._bar.set_postfix(residual=f"{residual:.1e}", refresh=False)
            self._bar.update(steps)

    def close(self) -> None:
        """Leave the line as it is."""
        if self._bar is not None:
            self._bar.close()


def iterate(blocks: Decomposition, halo: Halo, audit: Audit, progress: Progress, options: argparse.Namespace) -> tuple[Array, int, float]:
    """Iterate from zero until the residual is below the tolerance; return the block without halo, the iterations, the residual."""
    rows, columns = blocks.shape
    old = np.zeros((rows + 2, columns + 2))
    if blocks.above == MPI.PROC_NULL:
        x = np.arange(blocks.column_start + 1, blocks.column_stop + 1) / (blocks.size + 1)
        old[-1, 1:-1] = analytic.edge(x)
    new = old.copy()
    residual = np.inf
    step = 0
    while step < options.iterations and not residual <= options.tolerance:
        halo.exchange(old)
        inner = new[1:-1, 1:-1]
        np.add(old[:-2, 1:-1], old[2:, 1:-1], out=inner)
        inner += old[1:-1, :-2]
        inner += old[1:-1, 2:]
        inner *= 0.25
        step += 1
        if step % options.interval == 0 or step == options.iterations:
            change = inner - old[1:-1, 1:-1]
            total = audit.allreduce_sum(np.array([np.sum(change * change)]))
            residual = float(np.sqrt(total[0]) / blocks.size)
            progress.advance((step - 1) % options.interval + 1, residual)
        old, new = new, old
    return old[1:-1, 1:-1], step, residual


def main(argv: list[str], comm: MPI.Intracomm = MPI.COMM_WORLD) -> int:
    """Run on all ranks of `comm`; return the exit code: 0 verified, 1 not."""
    options = arguments(argv)
    rank, ranks = comm.Get_rank(), comm.Get_size()
    try:
        blocks = decompose(options.size, ranks, rank)
    except ValueError as error:
        if rank == 0:
            print(f"heat: {error}", file=sys.stderr)
        return 2
    volume = Volume(rank, ranks)
    audit = Audit(comm, volume)
    progress = Progress(rank, options.iterations)
    traffic = Traffic(comm)
    traffic.start()
    plate, steps, residual = iterate(blocks, Halo(comm, blocks, audit, volume), audit, progress, options)
    traffic.stop()
    progress.close()

    n = options.size
    row_numbers = np.arange(blocks.row_start + 1, blocks.row_stop + 1)
    column_numbers = np.arange(blocks.column_start + 1, blocks.column_stop + 1)
    h = 1.0 / (n + 1)
    remaining = analytic.iteration_error(n, steps, row_numbers, column_numbers)
    expected = analytic.grid_steady(n, row_numbers, column_numbers) + remaining
    errors = np.array(
        [
            np.max(np.abs(plate - analytic.steady(column_numbers * h, row_numbers * h))),
            np.max(np.abs(plate - expected)),
            np.max(np.abs(remaining)),
        ]
    )
    everyone = np.empty((ranks, errors.size))
    comm.Allgather(errors, everyone)  # not Allreduce: the audit can vouch for it, and a NaN is not lost in a maximum
    audit.replicated(everyone)
    analytic_error, iterate_error, remaining_error = everyone.max(axis=0).tolist()
    rounding = analytic.rounding_bound(n, steps)
    allowed = analytic.discretisation_bound(n) + remaining_error + rounding
    findings = audit.findings()
    verified = analytic_error <= allowed and iterate_error <= rounding and not findings
    if rank == 0:
        print(f"heat: {n} x {n} points on {ranks} ranks ({blocks.grid[0]} x {blocks.grid[1]} blocks)")
        print(f"iterations {steps}, residual {residual:.3e}, time {traffic.seconds:.3f} s")
        print(f"max error against the analytic series {analytic_error:.3e} (allowed {allowed:.3e})")
        print(f"max error against the closed form of iteration {steps} {iterate_error:.3e} (allowed {rounding:.3e})")
        for finding in findings:
            print(f"message audit: {finding}")
        print("VERIFIED" if verified else "FAILED", flush=True)
    details = {
        "size": n,
        "iterations": steps,
        "residual": residual,
        "analytic_error": analytic_error,
        "analytic_allowed": allowed,
        "iterate_error": iterate_error,
        "iterate_allowed": rounding,
        "findings": findings,
    }
    report(comm, "heat", verified, traffic, volume, details, options.json)
    if options.png is not None:
        pieces = comm.gather((blocks, plate), root=0)
        if pieces is not None:
            from apps.heat.picture import draw

            whole = np.empty((n, n))
            for piece, values in pieces:
                whole[piece.row_start : piece.row_stop, piece.column_start : piece.column_stop] = values
            draw(options.png, whole, f"{n} x {n} points, {ranks} ranks, {steps} Jacobi iterations")
    return 0 if verified else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
