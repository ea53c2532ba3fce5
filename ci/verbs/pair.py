"""Run a command in each of two virtual machines with a wire between: ``ci/verbs/pair [options] -- COMMAND``.

The machines are what ``ci/verbs/vm`` makes, with rxe0 on the wire. The environment says which one it is: HOST_INDEX (0 or 1),
HOST_ADDRESS and PEER_ADDRESS; the names host0 and host1 resolve. The command starts when both machines reach each other. Each line
of output begins with the index of its host. Exit code: when both have ended, the larger one of the commands'; 124 as for vm.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import IO

import machine

ADDRESSES = ("10.13.0.1", "10.13.0.2")


def guests(base: machine.Guest, sockets: Path) -> list[machine.Guest]:
    """Return both ends of a wire for what `base` says; its sockets will be in a folder with a short name."""
    ends = (sockets / "0", sockets / "1")
    made = []
    for index, address in enumerate(ADDRESSES):
        wire = machine.Wire(ends[index], ends[1 - index], index)
        names = {"HOST_INDEX": str(index), "HOST_ADDRESS": address, "PEER_ADDRESS": ADDRESSES[1 - index]}
        made.append(replace(base, environment={**base.environment, **names}, wire=wire))
    return made


def copy_lines(source: IO[bytes], index: int, lock: threading.Lock) -> None:
    """Copy to stdout, each line whole and after its host's index."""
    for line in source:
        with lock:
            sys.stdout.buffer.write(b"%d: %s" % (index, line if line.endswith(b"\n") else line + b"\n"))
            sys.stdout.buffer.flush()


def main() -> int:
    """Command line; returns the exit code."""
    options = machine.parse(machine.arguments("ci/verbs/pair", __doc__))
    machine.end_on_signals()
    machine.set_up(options.kernel)
    lock = threading.Lock()
    copiers = []
    with tempfile.TemporaryDirectory(prefix="wire-") as folder, ExitStack() as running:  # not in build: a socket's path is short
        deadline = time.monotonic() + options.timeout
        machines = []
        for index, guest in enumerate(guests(machine.guest_of(options), Path(folder))):
            machines.append(running.enter_context(machine.Machine(guest, subprocess.PIPE, f"host{index}")))
            source = machines[-1].process.stdout
            assert source is not None
            copiers.append(threading.Thread(target=copy_lines, args=(source, index, lock), daemon=True))
            copiers[-1].start()
        code = max([each.wait(deadline) for each in machines])
    for copier in copiers:
        copier.join()
    return code


if __name__ == "__main__":
    sys.exit(main())
