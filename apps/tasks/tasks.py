"""A manager gives tasks to workers by calls; a worker that dies loses none. Counts solutions of n queens. See README.md beside it."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from pympx import MPI, rpc

sys.path.append(str(Path(__file__).resolve().parents[2]))  # after the installed packages, so that the source tree never hides them

from apps.tasks import queens

comm = MPI.COMM_WORLD
#: what this rank has executed, and after how many tasks it kills itself
executed: Counter[tuple[int, ...]] = Counter()
dies_after = -1


def arguments(argv: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="tasks.py", description=__doc__)
    sizes = sorted(queens.PUBLISHED)
    parser.add_argument("--queens", type=int, default=10, metavar="N", choices=sizes, help="size of the board (default 10)")
    parser.add_argument("--rows", type=int, default=3, metavar="R", help="a task is a way to fill the first R rows (default 3)")
    parser.add_argument("--ahead", type=int, default=4, metavar="K", help="calls that a worker has outstanding (default 4)")
    parser.add_argument("--kill", metavar="RANK:AFTER", help="let a worker kill itself in the middle of the task after so many"
                        " (needs a launcher that lets the others go on: python -m pympx run --keep-going)")  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result as JSON")
    options = parser.parse_args(argv)
    if not 1 <= options.rows < options.queens or options.ahead < 1:
        parser.error("--rows must be at least 1 and less than --queens, --ahead at least 1")
    return options


def execute(n: int, task: tuple[int, ...]) -> int:
    """A task: in how many ways the board can be completed. Executed by a worker."""
    if sum(executed.values()) == dies_after:
        os.kill(os.getpid(), signal.SIGKILL)
    executed[task] += 1
    return queens.count(n, task)


def done_here() -> tuple[int, int]:
    """How many tasks this rank has executed, and how often the one that it executed most."""
    return sum(executed.values()), max(executed.values(), default=0)


class Manager:
    """Hands out tasks until each has an answer; those of a worker that failed go to the others."""

    def __init__(self, options: argparse.Namespace, workers: list[int]) -> None:
        self.n, self.ahead = options.queens, options.ahead
        self.todo = queens.starts(options.queens, options.rows)
        self.total = len(self.todo)
        self.answers: dict[tuple[int, ...], int] = {}
        self.workers = workers
        self.lost: dict[int, str] = {}
        self.again = 0
        self._bar: Any = None
        if sys.stderr.isatty():
            from tqdm import tqdm  # type: ignore[import-untyped, unused-ignore]

            self._bar = tqdm(total=self.total, unit="task", desc="tasks")

    async def _feed(self, worker: int) -> None:
        """Keep one call to a worker outstanding."""
        while self.todo and worker not in self.lost:
            task = self.todo.pop()
            try:
                answer = await rpc.call(worker, execute, self.n, task)
            except MPI.Exception as error:
                if error.Get_error_class() != MPI.ERR_PROC_FAILED:
                    raise
                self.todo.append(task)
                self.again += 1
                self.lost.setdefault(worker, str(error))
                return
            if task in self.answers:
                raise AssertionError(f"task {task} was answered twice")
            self.answers[task] = answer
            if self._bar is not None:
                self._bar.update(1)

    async def run(self) -> int:
        """Return the sum of all answers. Raises RuntimeError when no worker is left."""
        while self.todo:
            living = [worker for worker in self.workers if worker not in self.lost]
            if not living:
                raise RuntimeError(f"no worker is left: {'; '.join(self.lost.values())}")
            await asyncio.gather(*(self._feed(worker) for worker in living for _ in range(self.ahead)))
        if self._bar is not None:
            self._bar.close()
        return sum(self.answers.values())


def manage(options: argparse.Namespace) -> int:
    """The manager's part; returns the exit code."""
    manager = Manager(options, list(range(1, comm.size)) or [0])
    begun = time.perf_counter()
    found = asyncio.run(manager.run())
    seconds = time.perf_counter() - begun
    counts = {rank: rpc.call(rank, done_here).result() for rank in manager.workers if rank not in manager.lost}
    expected = queens.PUBLISHED[options.queens]
    once = len(manager.answers) == manager.total and all(most <= 1 for _, most in counts.values())
    if not manager.lost:
        once = once and sum(done for done, _ in counts.values()) == manager.total
    verified = found == expected and once
    print(f"{options.queens} queens: {manager.total} tasks on {len(manager.workers)} workers, {seconds:.3f} s")
    for rank, reason in manager.lost.items():
        print(f"lost: {reason}; {manager.again} of its tasks went to others" if len(manager.lost) == 1 else f"lost rank {rank}: {reason}")
    print(f"solutions {found}, published {expected}; every task answered once: {'yes' if once else 'NO'}")
    print("VERIFIED" if verified else "FAILED")
    if options.json:
        record = {"verified": verified, "solutions": found, "tasks": manager.total, "again": manager.again, "lost": sorted(manager.lost),
                  "executed": {str(rank): done for rank, (done, _) in counts.items()}, "seconds": seconds}  # fmt: skip
        options.json.write_text(json.dumps(record))
    return 0 if verified else 1


def main(argv: list[str]) -> int:
    """Run; returns the exit code."""
    global dies_after
    options = arguments(argv)
    if options.kill:
        rank, _, after = options.kill.partition(":")
        dies_after = int(after) if int(rank) == comm.rank else -1
    return manage(options) if comm.rank == 0 else 0  # a worker has nothing to do but to serve, until everybody is done


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
