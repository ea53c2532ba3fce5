"""Hosts for tests, made of namespaces on this machine: own network, own hostname, own mounts with their own /dev/shm. Needs root.

    with Hosts("a", "b") as hosts:
        hosts.run("a", ["ping", "-c1", "b"], timeout=10)

Each host is held by one process that reads from a pipe of ours: when this process ends, however it ends, the holders read end-of-file and
end too, and the kernel removes the namespaces and all interfaces in them. Nothing is made in the machine's own network. The hosts are
joined by a bridge in a further host, ``head``, from which a launcher is started that its agents must reach; ``head`` has no other task.

``hosts.rsh`` is a program that is called as ssh is, and runs a command in a host: ``rsh a 'echo $HOSTNAME'``.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

#: the network that joins the hosts; the same for every set of hosts, since each set has a bridge of its own
NETWORK = "10.77.0"
HEAD = "head"
#: bridges that every host has, with the same address on all of them, as Docker and libvirt make
BOGUS = {"docker0": "172.17.0.1/16", "virbr0": "192.168.122.1/24"}
_TOOLS = ("unshare", "nsenter", "ip", "nft", "mount", "hostname")
_SETUP_LIMIT = 20.0

_RSH = """\
#!/bin/sh
# Called as ssh is: rsh [options] HOST WORD...; the words are joined and given to a shell in HOST.
while :; do case "$1" in
    -o|-l|-p|-i|-F|-E) shift 2 ;;
    -*) shift ;;
    *) break ;;
esac; done
host=${1#*@}; shift
case "$host" in
%s
    *) echo "rsh: no host is called $host" >&2; exit 255 ;;
esac
%s
exec nsenter -t "$pid" -n -u -i -m%s -- /bin/sh -c "cd / && $*"
"""


class HostsError(RuntimeError):
    """Hosts cannot be made here, or a command that makes them failed. The message says which."""


@dataclass
class _Host:
    name: str
    address: str
    holder: subprocess.Popen[bytes]
    #: a process inside all of the host's namespaces
    pid: int


def missing() -> str:
    """Return why hosts cannot be made here, or the empty string."""
    if os.geteuid() != 0:
        return "namespaces need root"
    absent = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if absent:
        return f"{', '.join(absent)} not installed (util-linux, iproute2, nftables, mount, hostname)"
    return ""


class Hosts:
    """Several hosts. A context manager: at its end every process inside them is killed and they are gone.

    `pids`: each host also has a process numbering and a /proc of its own. `bogus`: which of BOGUS every host has. `environment`: added to
    that of commands which `rsh` runs.
    """

    def __init__(
        self, *names: str, pids: bool = False, bogus: Sequence[str] = ("docker0", "virbr0"), environment: Mapping[str, str] | None = None
    ) -> None:
        self.names = names
        self._pids = pids
        self._bogus = tuple(bogus)
        self._environment = dict(environment or {})
        self._hosts: dict[str, _Host] = {}
        self._folder = ""

    def __enter__(self) -> Hosts:
        reason = missing()
        if reason:
            raise HostsError(f"cannot make namespace hosts: {reason}")
        self._folder = tempfile.mkdtemp(prefix="pympx-hosts-")
        try:
            self._make()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._remove()

    # ---- what tests use ----

    @property
    def rsh(self) -> str:
        """Path of a program that takes a host's name and a command line, as ssh does."""
        return str(Path(self._folder, "rsh"))

    def address(self, name: str) -> str:
        """IPv4 address of a host in the common network."""
        return self._hosts[name].address

    def inside(self, name: str, words: Sequence[str]) -> list[str]:
        """Return the command that runs `words` in a host, in the current directory and with the caller's environment."""
        pid = str(self._hosts[name].pid)
        pid_namespace = ["-p"] if self._pids and name != HEAD else []
        return ["nsenter", "-t", pid, "-n", "-u", "-i", "-m", *pid_namespace, f"--wdns={os.getcwd()}", "--", *words]

    def run(
        self, name: str, words: Sequence[str], *, timeout: float, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in a host to its end. Raises subprocess.TimeoutExpired after `timeout` seconds."""
        return subprocess.run(
            self.inside(name, words), env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False
        )

    def close_ports(self, name: str, first: int, last: int) -> None:
        """Make a host's firewall drop what comes to TCP ports `first` to `last`, without an answer."""
        self._root(name, "nft", "add table ip closed")
        self._root(name, "nft", "add chain ip closed input { type filter hook input priority 0; }")
        self._root(name, "nft", f"add rule ip closed input tcp dport {first}-{last} drop")

    def open_ports(self, name: str) -> None:
        """Undo close_ports."""
        self._root(name, "nft", "delete table ip closed")

    def cable(self, name: str, *, plugged: bool) -> None:
        """Pull out a host's network cable, or plug it in again. Addresses and connections stay, packets are lost."""
        self._root(HEAD, "ip", "link", "set", f"to-{name}", "up" if plugged else "down")

    def interface(self, name: str, interface: str, *, up: bool) -> None:
        """Set an interface of a host up or down, as its administrator would."""
        self._root(name, "ip", "link", "set", interface, "up" if up else "down")

    def processes(self, name: str) -> dict[int, str]:
        """Return the processes in a host's network, other than its holder: pid (as seen here) and command line."""
        host = self._hosts[name]
        wanted = os.stat(f"/proc/{host.pid}/ns/net").st_ino
        found = {}
        for entry in os.listdir("/proc"):
            if not entry.isdecimal() or int(entry) in (host.pid, host.holder.pid):
                continue
            with contextlib.suppress(OSError):
                if os.stat(f"/proc/{entry}/ns/net").st_ino == wanted:
                    command = Path(f"/proc/{entry}/cmdline").read_bytes()
                    if command:  # a zombie has none
                        found[int(entry)] = command.replace(b"\0", b" ").decode(errors="replace").strip()
        return found

    # ---- making and removing ----

    def _make(self) -> None:
        addresses = {HEAD: f"{NETWORK}.254"} | {name: f"{NETWORK}.{number}" for number, name in enumerate(self.names, 1)}
        table = Path(self._folder, "hosts")
        table.write_text("127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for name, address in addresses.items()))
        for name, address in addresses.items():
            self._hosts[name] = self._hold(name, address, table)
        self._batch(
            HEAD,
            f"""
            link set lo up
            link add joint type bridge
            addr add {addresses[HEAD]}/24 dev joint
            link set joint up
            """,
        )
        for name in self.names:
            self._batch(
                HEAD,
                f"""
                link add to-{name} type veth peer name eth0 netns {self._hosts[name].pid}
                link set to-{name} master joint up
                """,
            )
            bogus = "".join(f"link add {b} type bridge\naddr add {BOGUS[b]} dev {b}\nlink set {b} up\n" for b in self._bogus)
            self._batch(name, f"link set lo up\n{bogus}addr add {addresses[name]}/24 dev eth0\nlink set eth0 up\n")
        exports = "\n".join(f"export {key}='{value}'" for key, value in self._environment.items())
        cases = "\n".join(f"    {name}) pid={host.pid} ;;" for name, host in self._hosts.items())
        rsh = Path(self.rsh)
        rsh.write_text(_RSH % (cases, exports, " -p" if self._pids else ""))
        rsh.chmod(0o755)

    def _hold(self, name: str, address: str, table: Path) -> _Host:
        own_pids = self._pids and name != HEAD
        script = f"""
            set -e
            hostname {name}
            mount -t tmpfs -o size=64m pympx-host /dev/shm
            mount --bind {table} /etc/hosts
            mount -t sysfs sysfs /sys
            echo ready
            exec cat"""
        words = ["unshare", "--net", "--uts", "--ipc", "--mount", "--propagation", "private"]
        if own_pids:
            words += ["--pid", "--fork", "--mount-proc", "--kill-child"]
        holder = subprocess.Popen([*words, "/bin/sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert holder.stdout
        if holder.stdout.readline() != b"ready\n":
            holder.kill()
            raise HostsError(f"host {name} could not be made: unshare or mount failed")
        pid = holder.pid
        if own_pids:
            pid = int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
        return _Host(name, address, holder, pid)

    def _root(self, name: str, *words: str) -> None:
        done = self.run(name, words, timeout=_SETUP_LIMIT)
        if done.returncode != 0:
            raise HostsError(f"host {name}: {' '.join(words)}: {done.stderr.strip()}")

    def _batch(self, name: str, text: str) -> None:
        done = subprocess.run(
            self.inside(name, ["ip", "-batch", "-"]), input="\n".join(line.strip() for line in text.splitlines()),
            capture_output=True, text=True, timeout=_SETUP_LIMIT, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise HostsError(f"host {name}: ip: {done.stderr.strip()}")

    def _remove(self) -> None:
        for host in self._hosts.values():
            with contextlib.suppress(OSError):
                for pid in self.processes(host.name):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
        for host in self._hosts.values():
            host.holder.kill()
            host.holder.communicate()
        self._hosts.clear()
        shutil.rmtree(self._folder, ignore_errors=True)
