"""`--hosts` through the real ssh, to an sshd in each host: output, exit code, and no rank that outlives the launcher."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hosts_support import LIMIT, ROOT, environment, program

from pympx.testing.hosts import HEAD, Hosts
from pympx.testing.jobs import eventually

_SSHD = """
ListenAddress 0.0.0.0
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
PidFile none
StrictModes no
UsePAM no
PermitRootLogin yes
PasswordAuthentication no
"""
#: what installing an sshd would have done: its empty directory, its user; seen in the host only
_PREPARE = """\
mount -t tmpfs tmpfs /run && mkdir /run/sshd && cp /etc/passwd /run/passwd && mount --bind /run/passwd /etc/passwd \
&& { grep -q ^sshd: /etc/passwd || echo sshd:x:65000:65534::/run/sshd:/usr/sbin/nologin >> /etc/passwd; }"""
_SSH = """
Host *
    IdentityFile {folder}/user
    UserKnownHostsFile {folder}/known
    StrictHostKeyChecking accept-new
    LogLevel ERROR
"""


@pytest.fixture
def reachable(two: Hosts, tmp_path: Path) -> Iterator[tuple[Hosts, list[str]]]:
    """Hosts with an sshd each, and the launcher's command line, to be run in `head`, up to the program."""
    sshd = shutil.which("sshd", path=f"{ROOT}/build/sshd/usr/sbin:{os.environ['PATH']}:/usr/sbin")
    if sshd is None or shutil.which("ssh") is None:
        reason = "no ssh and sshd: ci/setup gets them"
        pytest.fail(reason) if os.environ.get("PYMPX_CI") else pytest.skip(reason)
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)], check=True, timeout=20)
    (tmp_path / "sshd_config").write_text(_SSHD.format(folder=tmp_path))
    (tmp_path / "ssh_config").write_text(_SSH.format(folder=tmp_path))
    os.chdir(tmp_path)
    with ExitStack() as daemons:
        for name in two.names:
            start = f"{_PREPARE} && exec {sshd} -D -e -f {tmp_path}/sshd_config"
            daemon = subprocess.Popen(two.inside(name, ["sh", "-c", start]), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
            daemons.callback(daemon.communicate)
            daemons.callback(daemon.kill)
            knock = f"import socket; socket.create_connection(({name!r}, 22), 1)"
            assert eventually(lambda knock=knock: two.run(HEAD, [sys.executable, "-c", knock], timeout=10).returncode == 0, 10)  # type: ignore[misc]
        rsh = f"ssh -F {tmp_path}/ssh_config -o BatchMode=yes"
        yield two, two.inside(HEAD, [sys.executable, "-P", "-m", "pympx", "run", "--hosts", "a,b", "--rsh", rsh])


def test_ranks_start_speak_and_end(reachable: tuple[Hosts, list[str]], tmp_path: Path) -> None:
    _, command = reachable
    text = """
    import os, socket, sys
    from pympx import MPI
    comm = MPI.COMM_WORLD
    hosts = comm.allgather(socket.gethostname())
    assert os.environ["COLOUR"] == "blue" and "SSH_CONNECTION" in os.environ, os.environ
    print(comm.rank, "".join(hosts), comm.allreduce(comm.rank), flush=True)
    if comm.rank == 0:
        print(sys.stdin.read(), end="")
    comm.Barrier()
    if comm.rank == 3:
        sys.exit(5)
    """
    words = [*command, "-n", "4", *program(tmp_path, text)]
    done = subprocess.run(
        words, env=environment(COLOUR="blue"), input="typed\n", capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert done.returncode == 5, done.stderr
    assert sorted(done.stdout.splitlines()) == [*(f"{rank} aabb 6" for rank in range(4)), "typed"]
    assert done.stderr.startswith("pympx run: rank 3 on b exited with code 5")
    assert len(done.stderr.splitlines()) == 1


def test_no_rank_outlives_a_killed_launcher(reachable: tuple[Hosts, list[str]], tmp_path: Path) -> None:
    hosts, command = reachable
    words = [*command, "-n", "4", "sh", "-c", "echo ready; sleep 1000"]
    process = subprocess.Popen(words, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def sleepers() -> int:
        return sum("sleep 1000" in command for name in hosts.names for command in hosts.processes(name).values())

    try:
        assert process.stdout
        assert [process.stdout.readline() for _ in range(4)] == [b"ready\n"] * 4
        assert sleepers() >= 4
    finally:
        process.kill()
        process.communicate()
    assert eventually(lambda: sleepers() == 0, 2)


def test_a_host_without_sshd_is_one_line(reachable: tuple[Hosts, list[str]], tmp_path: Path) -> None:
    _, command = reachable
    wrong = [word.replace("a,b", "a,127.0.0.2") for word in command]
    done = subprocess.run(
        [*wrong, "-n", "2", "true"], env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert done.returncode == 1
    assert "cannot start ranks on 127.0.0.2: ssh ended with exit code 255: " in done.stderr
    assert "refused" in done.stderr
    assert len(done.stderr.splitlines()) == 1
