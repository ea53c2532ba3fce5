"""Start a program as N ranks on this host (python -m pympx run -n N prog.py)."""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import sys

from ..launcher.job import Job

_DETAILS = """\
A PROG that ends in .py, or a module after -m, is run by this Python; any other PROG is executed as a command.

exit code     0 when all ranks end with 0; else that of the first rank that failed, 128+N when signal N killed it, or
              the code that a rank gave to Abort. When one rank fails the others get SIGTERM, and SIGKILL half a
              second later. 1 when a rank that had joined leaves with 0 but without finalizing (os._exit). 127 when
              PROG cannot be started, 2 when the command line is wrong.
signals       Ctrl-C, SIGTERM, SIGHUP and SIGQUIT are forwarded to all ranks and their children; exit code 128+N
              (Ctrl-C: 130). Ranks that have not ended after --grace seconds, or when the signal comes again, get
              SIGKILL. SIGUSR1, SIGUSR2 and Ctrl-Z are forwarded too. If this launcher is killed, even by SIGKILL, the
              ranks and the children in their process groups are killed.
input/output  stdin goes to rank 0, the others read end-of-file. stdout and stderr are forwarded as whole lines (a
              line of more than 1 MiB in pieces). Python ranks run with PYTHONUNBUFFERED=1 unless that variable is
              set, so their lines come when they are printed. What the ranks left running is ended once all ranks have
              ended and their output is closed, or a second later.
environment   ranks get PMI_FD, PMI_RANK, PMI_SIZE (PMI-1), MPI_LOCALRANKID, MPI_LOCALNRANKS, and the job's secret key
              by an inherited descriptor, never in arguments or environment. N may exceed the number of cores. The
              launcher opens no internet socket.

examples      python -m pympx run -n 4 heat.py --size 512
              PYMPX_TRANSPORT=tcp python -m pympx run -n 2 -m mypackage.solver
              python -m pympx run -n 3 --tag sh -c 'echo I am $PMI_RANK of $PMI_SIZE'
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pympx run", allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="python -m pympx run -n N [--tag] [--grace S] {PROG | -m MODULE} [ARGUMENTS]",
        description="Start a program as N ranks on this host.", epilog=_DETAILS,
    )  # fmt: skip
    parser.add_argument("-n", "-np", dest="size", type=_size, required=True, metavar="N", help="number of ranks, 1 to 4096")
    parser.add_argument("--tag", action="store_true", help="begin every line of output with the rank that wrote it: [2] ...")
    parser.add_argument("--grace", type=_seconds, default=5.0, metavar="S", help="seconds from a forwarded signal to SIGKILL (default 5)")
    parser.add_argument("-m", dest="module", action="store_true", help="PROG is a module's name, as for python -m")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="PROG [ARGUMENTS]", help="what each rank runs")
    return parser


def _size(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= 4096):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 4096")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time in seconds")
    return value


def _command(words: list[str], module: bool) -> list[str]:
    """Return what a rank executes. Raises OSError with the reason when it is known before that it cannot start."""
    if module:
        top = words[0].partition(".")[0]
        sys.path.insert(0, os.getcwd())
        try:
            found = importlib.util.find_spec(top) is not None
        except ValueError:
            found = True
        finally:
            del sys.path[0]
        if not found:
            raise OSError(f"there is no module {top!r}")
        return [sys.executable, "-m", *words]
    if words[0].endswith(".py"):
        with open(words[0], "rb"):
            pass
        return [sys.executable, *words]
    if shutil.which(words[0]) is None:
        raise FileNotFoundError(2, "no such command, or not executable", words[0])
    return words


def main(argv: list[str]) -> int:
    """Run the tool; return the exit code of the job."""
    parser = _parser()
    options = parser.parse_args(argv)
    words: list[str] = options.command
    if words[:1] == ["--"]:
        del words[0]
    if not words:
        parser.error("what shall the ranks run? give a PROG")
    _open_standard_descriptors()
    try:
        return Job(_command(words, options.module), options.size, tag=options.tag, signal_grace=options.grace).run()
    except OSError as error:
        reason = error.strerror or str(error)
        print(f"pympx run: cannot start {words[0]!r}: {reason}", file=sys.stderr)
        return 127


def _open_standard_descriptors() -> None:
    """Make sure that descriptors 0, 1 and 2 are taken, else pipes and sockets would get their numbers."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(fd)
