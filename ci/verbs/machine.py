"""Run a command in a virtual machine with soft-RoCE: ``ci/verbs/vm [options] -- COMMAND``.

The guest has this machine's root, read-only with an overlay in its memory: whatever the command writes is lost, but for build/logs of
this checkout and the folders of --share. It runs as root in the caller's directory with the caller's environment; its output comes
live on stdout. Exit code: the command's; 124 if the time is over or the machine ended without one; 2 for a wrong command line.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
LOGS = ROOT / "build" / "logs"
VM = ROOT / "build" / "vm"
KERNELS = ("6.1", "6.12")
NO_STATUS = 124
#: what means nothing in another machine
_NOT_PASSED = ("DISPLAY", "WAYLAND_DISPLAY", "DBUS_", "SSH_", "XDG_", "SUDO_", "OLDPWD", "SHLVL", "_")
_CONSOLE_LINES = 30


@dataclass(frozen=True)
class Wire:
    """One end of a cable between two guests: the Unix sockets of both ends, and which end this is, 0 or 1."""

    here: Path
    there: Path
    index: int


@dataclass(frozen=True)
class Guest:
    """A machine to start and what it is to run. Without a wire, `devices` says which verbs devices it has: "one" or "two"."""

    command: list[str]
    environment: Mapping[str, str]
    directory: Path
    shares: list[Path] = field(default_factory=list)
    devices: str = "one"
    kernel: str = KERNELS[0]
    cpus: int = 2
    memory: int = 3072
    wire: Wire | None = None


def passed_on(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what of an environment a guest gets."""

    def means_nothing(name: str) -> bool:
        return any(name == word or (word.endswith("_") and len(word) > 1 and name.startswith(word)) for word in _NOT_PASSED)

    return {name: value for name, value in environment.items() if not means_nothing(name)}


def without_nested(folders: Iterable[Path]) -> list[Path]:
    """Return the folders sorted and without those that are inside another one, which is shared anyway."""
    kept: list[Path] = []
    for folder in sorted(set(folders)):
        if not any(folder.is_relative_to(outer) for outer in kept):
            kept.append(folder)
    return kept


def job_text(guest: Guest, modules: Path) -> str:
    """Return job.sh, which tells the script `guest` all it has to know."""
    environment = {**guest.environment, "VERBS_DEVICES": "wire" if guest.wire else guest.devices}
    lists = {
        "shares": [str(share) for share in guest.shares],
        "environment": [f"{name}={value}" for name, value in environment.items()],
        "command": guest.command,
    }
    words = {
        "modules": str(modules),
        "devices": environment["VERBS_DEVICES"],
        "index": str(guest.wire.index if guest.wire else 0),
        "directory": str(guest.directory),
    }
    lines = [f"{name}={shlex.quote(word)}" for name, word in words.items()]
    return "\n".join([*lines, *(f"{name}=({shlex.join(entries)})" for name, entries in lists.items()), ""])


def _option(path: Path) -> str:
    return str(path).replace(",", ",,")  # in a list of qemu's options


def _folder(tag: str, path: Path, more: str = "") -> list[str]:
    return ["-virtfs", f"local,path={_option(path)},mount_tag={tag},security_model=none,multidevs=remap{more}"]


def qemu_words(guest: Guest, image: Path, initrd: Path, job: Path) -> list[str]:
    """Return the command of qemu, which does not outlive the process that starts it."""
    # under TCG the kernel's `rep movsb` and carry-less CRC are slower than what it has without, and the HPET than the TSC
    words = ["setpriv", "--pdeathsig", "KILL", "--", "qemu-system-x86_64"]
    words += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    words += ["-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max,-erms,-fsrm,-pclmulqdq"]
    words += ["-smp", str(guest.cpus), "-m", str(guest.memory), "-kernel", str(image), "-initrd", str(initrd)]
    words += ["-append", "console=ttyS0 panic=-1 quiet clocksource=tsc tsc=reliable mitigations=off"]
    words += [*_folder("root", Path("/"), ",readonly=on"), *_folder("job", job)]
    for number, share in enumerate(guest.shares):
        words += _folder(f"share{number}", share)
    words += ["-chardev", f"file,id=console,path={_option(job / 'console')}", "-serial", "chardev:console"]
    words += ["-chardev", "stdio,id=output,signal=off", "-device", "virtio-serial-pci", "-device", "virtserialport,chardev=output"]
    if guest.wire:
        here, there = _option(guest.wire.here), _option(guest.wire.there)
        words += ["-netdev", f"dgram,id=wire,local.type=unix,local.path={here},remote.type=unix,remote.path={there}"]
        words += ["-device", f"virtio-net-pci,netdev=wire,mac=52:54:00:00:00:0{guest.wire.index + 1},host_mtu=4200,romfile="]
    return words


def read_status(job: Path) -> int | None:
    """Return the exit status that a guest left, or None."""
    try:
        return int((job / "status").read_text())
    except (OSError, ValueError):
        return None


class Machine:
    """A guest, running from ``with`` on and ended by its end."""

    def __init__(self, guest: Guest, stdout: int | IO[bytes] | None = None, name: str = "vm") -> None:
        self._guest, self._stdout, self._name = guest, stdout, name

    def __enter__(self) -> Machine:
        files = VM / self._guest.kernel
        [image] = (files / "root" / "boot").glob("vmlinuz-*")
        modules = files / "root" / "lib" / "modules"
        self._folder = tempfile.TemporaryDirectory(prefix="job-", dir=VM)
        self._job = Path(self._folder.name)
        (self._job / "guest").symlink_to(HERE / "guest")
        (self._job / "job.sh").write_text(job_text(self._guest, modules), errors="surrogateescape")
        words = qemu_words(self._guest, image, files / "initrd", self._job)
        # a session of its own: Ctrl-C reaches this process only, which then ends it
        # an open stdin: at its end qemu would take the whole port for closed
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=self._stdout, start_new_session=True)
        return self

    def wait(self, deadline: float) -> int:
        """Wait for the guest's end, at most until a time of time.monotonic(); return its exit status, or say what went wrong."""
        try:
            code = self.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return self._fail("the time is over, the command is not")
        status = read_status(self._job)
        return self._fail(f"the machine ended without an exit status (qemu's is {code})") if status is None else status

    def _fail(self, what: str) -> int:
        """Say what happened and what the kernel said, of which all stays in build/logs. Returns NO_STATUS."""
        console = self._job / "console"
        text = console.read_text(errors="replace").strip() if console.exists() else ""
        if text:
            kept = LOGS / f"{self._name}-console.log"
            kept.write_text(text + "\n")
            lines = text.splitlines()[-_CONSOLE_LINES:]
            print(*(f"console: {line}" for line in lines), f"console: all of it is in {kept}", sep="\n", file=sys.stderr)
        print(f"{self._name}: {what}", file=sys.stderr)
        return NO_STATUS

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._folder.cleanup()


def _interrupted(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)


def end_on_signals() -> None:
    """From now on SIGINT, SIGTERM and SIGHUP leave by SystemExit, through all ``with``, which ends the machines."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupted)


def set_up(kernel: str) -> None:
    """Make the kernel ready. Raises SystemExit when that fails; the reason was printed."""
    if code := subprocess.run([HERE / "setup", kernel], stdout=sys.stderr, check=False).returncode:
        raise SystemExit(code)


def arguments(prog: str, description: str | None) -> argparse.ArgumentParser:
    """Return a parser of what all commands that start machines take."""
    parser = argparse.ArgumentParser(prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=Path, action="append", default=[], metavar="DIR", help="a folder to write to (repeatable)")
    parser.add_argument("--kernel", choices=KERNELS, default=KERNELS[0], help="default: %(default)s")
    parser.add_argument("--cpus", type=int, default=2, metavar="N", help="of a guest; default: %(default)s")
    parser.add_argument("--memory", type=int, default=3072, metavar="MIB", help="of a guest; default: %(default)s")
    parser.add_argument("--timeout", type=float, default=600.0, metavar="S", help="the whole run, boot included; default: %(default)g")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="what to run")
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line: `command` without its "--", `share` absolute, existing, and with build/logs."""
    options = parser.parse_args()
    options.command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not options.command:
        parser.error("no command given: put it after --")
    LOGS.mkdir(parents=True, exist_ok=True)
    options.share = without_nested([LOGS, *(share.resolve() for share in options.share)])
    for share in options.share:
        if not share.is_dir():
            parser.error(f"{share} is not a directory")
    return options


def guest_of(options: argparse.Namespace, devices: str = "one") -> Guest:
    """Return the guest that a command line asks for."""
    return Guest(
        options.command,
        passed_on(os.environ),
        Path.cwd(),
        options.share,
        devices,
        options.kernel,
        options.cpus,
        options.memory,
    )


def main() -> int:
    """Command line; returns the exit code."""
    parser = arguments("ci/verbs/vm", __doc__)
    parser.add_argument("--devices", choices=["one", "two"], default="one", help="rxe0, or rxe1 and rxe2 with a wire between; default: one")
    options = parse(parser)
    end_on_signals()
    set_up(options.kernel)
    with Machine(guest_of(options, options.devices)) as machine:
        return machine.wait(time.monotonic() + options.timeout)


if __name__ == "__main__":
    sys.exit(main())
