"""Start a program as N ranks, here or on several hosts (python -m pympx run -n N [--hosts a,b] prog.py)."""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import shutil
import sys

from .. import config
from ..launcher.job import Job
from ..launcher.place import distribute, parse_hosts

_DETAILS = """\
A PROG that ends in .py, or a module after -m, is run by this Python; any other PROG is executed as a command.

exit code     0 when all ranks end with 0; else that of the first rank that failed, 128+N when signal N killed it, or
              the code that a rank gave to Abort. When one rank fails the others get SIGTERM, and SIGKILL half a
              second later. 1 when a rank that had joined leaves with 0 but without finalizing (os._exit). 127 when
              PROG cannot be started, 2 when the command line is wrong. With --keep-going a failed rank does not end
              the others once all ranks have met; then 0 when any rank ends with 0. Abort and signals end all the same.
signals       Ctrl-C, SIGTERM, SIGHUP and SIGQUIT are forwarded to all ranks and their children; exit code 128+N
              (Ctrl-C: 130). Ranks that have not ended after --grace seconds, or when the signal comes again, get
              SIGKILL. SIGUSR1, SIGUSR2 and Ctrl-Z are forwarded too. If this launcher is killed, even by SIGKILL, the
              ranks and the children in their process groups are killed.
input/output  stdin goes to rank 0, the others read end-of-file. stdout and stderr are forwarded as whole lines (a
              line of more than 1 MiB in pieces). Python ranks run with PYTHONUNBUFFERED=1 unless that variable is
              set, so their lines come when they are printed. What the ranks left running is ended once all ranks have
              ended and their output is closed, or a second later.
hosts         --hosts a,b spreads the ranks over hosts in blocks of about N/2; --hosts a:2,b:6 says how many each takes.
              On each, `RSH HOST 'COMMAND'` starts an agent, RSH being --rsh, else PYMPX_RSH, else ssh without a
              password. It talks through RSH's stdin and stdout, so no port is opened and no daemon needed. Program,
              Python and pympx must be at the same paths on all hosts; ranks run in the same directory with this
              environment (but HOME, SHELL and the like are the host's). "localhost" needs no RSH. A host that
              cannot be reached, or is lost, ends the job with exit code 1.
environment   ranks get PMI_FD, PMI_RANK, PMI_SIZE (PMI-1), MPI_LOCALRANKID, MPI_LOCALNRANKS, and the job's secret key
              by an inherited descriptor (to other hosts it goes through RSH), never in arguments or environment. N may
              exceed the number of cores. The launcher opens no internet socket.

examples      python -m pympx run -n 4 heat.py --size 512
              PYMPX_TRANSPORT=tcp python -m pympx run -n 2 -m mypackage.solver
              python -m pympx run -n 8 --hosts node1,node2 heat.py
              python -m pympx run -n 3 --tag sh -c 'echo I am $PMI_RANK of $PMI_SIZE'
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pympx run", allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="python -m pympx run -n N [--hosts A,B [--rsh RSH]] [--tag] [--grace S] [--keep-going] {PROG | -m MODULE} [ARGUMENTS]",
        description="Start a program as N ranks, on this host or on several.", epilog=_DETAILS,
    )  # fmt: skip
    parser.add_argument("-n", "-np", dest="size", type=_size, required=True, metavar="N", help="number of ranks, 1 to 4096")
    parser.add_argument("--tag", action="store_true", help="begin every line of output with the rank that wrote it: [2] ...")
    parser.add_argument("--grace", type=_seconds, default=5.0, metavar="S", help="seconds from a forwarded signal to SIGKILL (default 5)")
    parser.add_argument("--keep-going", action="store_true", help="let the other ranks go on when one fails (MPI.Comm.Shrink)")
    parser.add_argument("--hosts", metavar="A,B", help="hosts to run on: a,b or, with numbers of ranks, a:2,b:6 (default PYMPX_HOSTS)")
    parser.add_argument("--rsh", metavar="RSH", help="what runs a command on a host, called as ssh is (default PYMPX_RSH, else ssh)")
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


def _command(words: list[str], module: bool, here: bool) -> list[str]:
    """Return what a rank executes. Raises OSError with the reason when ranks run `here` and it is known before that they cannot start."""
    if not here:
        return [sys.executable, "-m", *words] if module else [sys.executable, *words] if words[0].endswith(".py") else words
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
    named: str = config.get("PYMPX_HOSTS") if options.hosts is None else options.hosts
    try:
        hosts = distribute(parse_hosts(named), options.size) if named else []
    except ValueError as error:
        parser.error(f"--hosts or PYMPX_HOSTS: {error}")
    try:
        rsh = shlex.split(config.get("PYMPX_RSH") if options.rsh is None else options.rsh)
    except ValueError as error:
        parser.error(f"--rsh or PYMPX_RSH: {error}")
    if hosts and not rsh:
        parser.error("--rsh or PYMPX_RSH: an empty command")
    _open_standard_descriptors()
    try:
        command = _command(words, options.module, here=not hosts)
        return Job(
            command,
            options.size,
            tag=options.tag,
            signal_grace=options.grace,
            hosts=hosts,
            rsh=rsh,
            keep_going=options.keep_going,
        ).run()
    except OSError as error:
        reason = error.strerror or str(error)
        print(f"pympx run: cannot start {error.filename or words[0]!r}: {reason}", file=sys.stderr)
        return 127


def _open_standard_descriptors() -> None:
    """Make sure that descriptors 0, 1 and 2 are taken, else pipes and sockets would get their numbers."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(fd)
