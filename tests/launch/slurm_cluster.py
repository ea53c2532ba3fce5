"""A Slurm cluster on this machine for the launch tests: munged, slurmctld and slurmd's of our own, started and ended by a context manager.

Everything lives in one directory and listens on 127.0.0.1 with ports that were free a moment ago. Debian's slurmd can be several nodes of
one host (``-N name``). Needs root, as slurmd does. Each daemon stays in the foreground (its own option), so that it is a child to end.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

from support import environment, free_port

from pympx.testing.jobs import eventually

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sinfo")
_START_S = 30.0

_CONF = """\
ClusterName=pympxtest
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
CredType=cred/munge
SlurmctldPort={port}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdSpoolDir={folder}/spool.%n
TmpFS={folder}/tmp.%n
StateSaveLocation={folder}/state
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
KillWait=2
SchedulerType=sched/builtin
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=YES
"""


def path_with_sbin() -> str:
    """The search path with the directories of daemons."""
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def missing() -> str:
    """Say what keeps a cluster from running here; "" when nothing does."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=path_with_sbin()) is None]
    if absent:
        return f"{', '.join(absent)} not found (Debian: slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge)"
    return "" if os.geteuid() == 0 else "slurmd needs root"


@contextlib.contextmanager
def cluster(folder: Path, nodes: int = 2, cores: int = 4) -> Iterator[dict[str, str]]:
    """Run a cluster of `nodes` nodes that claim `cores` cores each; yield the variables that its clients need."""
    host = socket.gethostname().partition(".")[0]
    names = [f"n{number}" for number in range(1, nodes + 1)]
    for sub in ("state", *(f"spool.{name}" for name in names), *(f"tmp.{name}" for name in names)):
        (folder / sub).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    lines = [f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={free_port()} CPUs={cores} State=UNKNOWN" for name in names]
    conf = folder / "slurm.conf"
    conf.write_text(_CONF.format(host=host, folder=folder, port=free_port(), nodes="\n".join(lines)))
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    settings = {"SLURM_CONF": str(conf)}
    with contextlib.ExitStack() as daemons:
        _start(daemons, folder, "munged", "--foreground", "--force", *(
            f"--{option}={folder / name}" for option, name in
            (("key-file", "munge.key"), ("socket", "munge.sock"), ("pid-file", "munged.pid"), ("seed-file", "munge.seed"))
        ))  # fmt: skip
        _await((folder / "munge.sock").exists, folder, "munged")
        _start(daemons, folder, "slurmctld", "-D", "-c", "-f", str(conf))
        for name in names:
            _start(daemons, folder, "slurmd", "-D", "-f", str(conf), "-N", name)
        _await(lambda: _idle_nodes(settings) == nodes, folder, "slurmctld")
        yield settings


def _idle_nodes(settings: dict[str, str]) -> int:
    shown = subprocess.run(
        ["sinfo", "-h", "-N", "-t", "idle", "-o", "%N"],
        env=environment(**settings),
        capture_output=True,
        text=True,
        timeout=_START_S,
        check=False,
    )
    return len(shown.stdout.split())


def _start(daemons: contextlib.ExitStack, folder: Path, program: str, *options: str) -> None:
    command = [str(shutil.which(program, path=path_with_sbin())), *options]
    with (folder / f"{program}.log").open("ab") as log:
        daemon = subprocess.Popen(command, env=environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder)
    daemons.callback(_end, daemon)


def _end(daemon: subprocess.Popen[bytes]) -> None:
    daemon.terminate()
    try:
        daemon.wait(10)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def _await(condition: object, folder: Path, program: str) -> None:
    assert callable(condition)
    if not eventually(condition, _START_S):
        logs = "\n".join((folder / name).read_text(errors="replace")[-3000:] for name in os.listdir(folder) if name.endswith(".log"))
        raise RuntimeError(f"{program} is not up after {_START_S:.0f} s\n{logs}")
