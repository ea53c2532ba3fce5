"""Which launcher is recognized, and that a rank never believes by mistake to be alone."""

from __future__ import annotations

import json
import os
import shlex
import socket
import sys
from collections.abc import Callable

import pytest
from launchers import LAUNCHERS, Launcher, Start, need
from support import RUN, environment, execute, mpiexec

from pympx.bootstrap import BootstrapError, detect
from pympx.bootstrap.signs import MARK, mark

HYDRA = {"PMI_RANK": "0", "PMI_SIZE": "2"}
TORCH = {"RANK": "0", "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29876"}
PMIX = {"PMIX_NAMESPACE": "job@1", "PMIX_RANK": "0"}
SRUN = {"SLURM_PROCID": "1", "SLURM_NTASKS": "4", "SLURM_STEP_ID": "0", "SLURM_JOB_ID": "1"}

JOIN = [sys.executable, "-c", "from pympx.bootstrap import join_or_exit; print(join_or_exit().name)"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"PMIX_NAMESPACE": "n", "PMIX_RANK": "0"}, "PMIX_SERVER_"),
        ({"PMIX_NAMESPACE": "n", "PMIX_RANK": "0", "PMIX_SERVER_URI4": "n.0;tcp4://127.0.0.1:1"}, "libpmix.so.2"),
        ({"PMIX_NAMESPACE": "n", "PMIX_RANK": "x"}, "PMIX_RANK='x'"),
        ({"PMIX_NAMESPACE": "n", "PMIX_RANK": "0", "PMIX_SERVER_URI4": "n.0;tcp4://127.0.0.1:1", "PYMPX_LIBPMIX": "/none.so"}, "/none.so"),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}, "Open MPI"),
        (SRUN, "srun --mpi=pmi2"),
        (SRUN | {"SLURM_STEP_NUM_NODES": "2"}, "PYMPX_JOB_KEY_FILE"),
        (SRUN | {"SLURM_STEP_NUM_NODES": "1", "SLURM_PROCID": "4"}, "SLURM_PROCID=4"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR"),
        (TORCH | {"RANK": "7"}, "RANK=7"),
        (TORCH | {"RANK": "x"}, "RANK='x'"),
        (TORCH | {"RANK": "-1"}, "RANK='-1'"),
        (TORCH | {"WORLD_SIZE": "0"}, "WORLD_SIZE='0'"),
        (TORCH | {"MASTER_PORT": "99999"}, "MASTER_PORT='99999'"),
        (TORCH | {"MASTER_ADDR": ""}, "MASTER_ADDR"),
        (TORCH | {"PYMPX_JOB_KEY_FILE": "/nonexistent/key"}, "PYMPX_JOB_KEY_FILE"),
        ({"PMI_PORT": "127.0.0.1:1", "PMI_ID": "0"}, "PMI_PORT"),
        ({"PMI_PORT": "nonsense", "PMI_ID": "0"}, "PMI_PORT"),
        ({"PMI_FD": "abc"} | HYDRA, "PMI_FD='abc'"),
        ({"PYMPX_BOOTSTRAP": "carrier-pigeon"}, "PYMPX_BOOTSTRAP='carrier-pigeon'"),
        ({"PYMPX_BOOTSTRAP": "pmi1"}, "PMI-1"),
        ({"PYMPX_BOOTSTRAP": "env"}, "RANK"),
        ({"PYMPX_BOOTSTRAP": "pmix"}, "PMIX_RANK"),
        ({"PYMPX_BOOTSTRAP": "slurm"}, "SLURM_PROCID"),
    ],
)
def test_unjoinable_launcher(settings: dict[str, str], said: str) -> None:
    done = execute(JOIN, env=environment(**settings))
    lines = done.stderr.decode().splitlines()
    assert done.returncode != 0 and done.stdout == b""
    assert len(lines) == 1 and said in lines[0], lines
    assert ":" in lines[0] and len(lines[0]) < 300


@pytest.mark.parametrize(
    ("changed", "said"), [({"PMI_RANK": "abc"}, "PMI_RANK='abc'"), ({"PMI_RANK": "2"}, "PMI_RANK=2"), ({"PMI_SIZE": ""}, "PMI_SIZE=''")]
)
def test_bad_pmi_values(changed: dict[str, str], said: str) -> None:
    with pytest.raises(BootstrapError) as caught:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            from pympx.bootstrap import join

            join({"PMI_FD": str(theirs.fileno())} | HYDRA | changed)
            theirs.detach()
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_pmi_fd_counts_only_as_a_socket() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert detect({"PMI_FD": str(theirs.fileno())} | HYDRA | TORCH | SRUN) == "pmi1"
        closed = os.dup(0)
        os.close(closed)
        assert detect({"PMI_FD": str(closed)} | HYDRA) == "single"
        assert detect({"PMI_FD": str(closed)} | HYDRA | TORCH) == "env"
        with open(os.devnull) as file:
            assert detect({"PMI_FD": str(file.fileno())} | HYDRA) == "single"


def test_order() -> None:
    port = {"PMI_PORT": "127.0.0.1:1", "PMI_ID": "0"}
    assert detect({}) == "single"
    assert detect(port | TORCH) == "pmi1"
    assert detect(TORCH | SRUN) == "env"
    assert detect({"RANK": "0", "WORLD_SIZE": "1"}) == "env"
    assert detect({"WORLD_SIZE": "8"}) == detect({"RANK": "3"}) == "single"
    assert detect(PMIX | TORCH | SRUN) == detect(PMIX | {"OMPI_COMM_WORLD_SIZE": "2"}) == "pmix"
    assert detect(port | PMIX) == "pmi1"
    assert detect(SRUN) == "slurm"
    assert detect(port | {"PYMPX_TRANSPORT": "mpi"}) == detect(PMIX | {"PYMPX_TRANSPORT": "fault", "PYMPX_FAULT": "over=mpi"}) == "mpi4py"
    assert detect(port | {"PYMPX_TRANSPORT": "mpi", "PYMPX_BOOTSTRAP": "pmi1"}) == "pmi1"
    assert detect(port | {"PYMPX_TRANSPORT": "tcp", "PYMPX_FAULT": "over=mpi"}) == "pmi1"
    assert detect(port | TORCH | {"PYMPX_BOOTSTRAP": "single"}) == "single"
    assert detect(port | TORCH | {"PYMPX_BOOTSTRAP": "mpi4py"}) == "mpi4py"
    assert detect(port | TORCH | {"PYMPX_BOOTSTRAP": "env"}) == "env"
    assert detect(SRUN | {"PYMPX_BOOTSTRAP": "single"}) == "single"
    assert detect(SRUN | {"SLURM_NTASKS": "1"}) == "single"
    assert detect(SRUN | {"SLURM_STEP_NUM_TASKS": "1"}) == "single"
    assert detect(SRUN | {"SLURM_STEP_ID": str(0xFFFFFFFB)}) == "single"  # a batch script


def test_only_signs_that_an_ancestor_did_not_see_count() -> None:
    """Whatever kinds of launchers are nested, in whatever order they would be believed."""
    port = {"PMI_PORT": "127.0.0.1:1", "PMI_ID": "0"}
    everything = [port, PMIX, TORCH, SRUN]
    for outer in everything:
        inherited = outer | {MARK: mark(outer).replace(f"{os.getpid()}:", "1:")}
        assert detect(inherited) == "single"
        assert detect(inherited | {"PYMPX_BOOTSTRAP": "mpi4py"}) == "single"
        for inner in everything:
            if inner is not outer:
                assert detect(inherited | inner) == detect(inner)
        changed = {key: ("7" if value == "0" else value) for key, value in outer.items()}
        assert detect(inherited | changed) == detect(changed) != "single"
    inherited = PMIX | {MARK: mark(PMIX).replace(f"{os.getpid()}:", "1:"), "PYMPX_BOOTSTRAP": "pmix"}
    assert detect(inherited) == "single"
    with pytest.raises(BootstrapError, match="inherited from a rank"):
        detect(inherited | TORCH)


FAMILY = """
    import json, multiprocessing, os, subprocess, sys
    from pympx.bootstrap import join

    def place(_):
        job = join()
        return f"{job.name} {job.rank}/{job.size}"

    if __name__ == "__main__":
        job = join()
        # one write per line: some launchers tear what comes in pieces
        program = ("import os; from pympx.bootstrap import join; job = join(); "
                   "os.write(1, f'{job.name} {job.rank}/{job.size}{chr(10)}'.encode())")
        leaving = program + "; job.allgather(b'x'); job.job_key(); job.finalize()"
        for closing in (True, False):
            child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, close_fds=closing)
            assert (child.returncode, child.stdout, child.stderr) == (0, "single 0/1\\n", ""), child
        # a child in which a socket of its own has got the number of its parent's connection
        number = int(os.environ.get("PMI_FD", "9"))
        for made in ("socket.socketpair()[0]", "socket.socket()"):
            opening = f"import os, socket; other = {made}; os.dup2(other.fileno(), {number}); {program}"
            child = subprocess.run([sys.executable, "-c", opening], capture_output=True, text=True)
            assert (child.returncode, child.stdout, child.stderr) == (0, "single 0/1\\n", ""), child
        # a grandchild through a child that joined
        nested = f"import subprocess, sys\\n{program}\\nsubprocess.run([sys.executable, '-c', {program!r}])"
        child = subprocess.run([sys.executable, "-c", nested], capture_output=True, text=True)
        assert (child.returncode, child.stdout, child.stderr) == (0, "single 0/1\\n" * 2, ""), child
        for method in ("fork", "spawn"):
            with multiprocessing.get_context(method).Pool(1) as pool:
                assert pool.map(place, [0]) == ["single 0/1"]
        # another launcher inside this rank makes a world of its own
        if job.rank == job.size - 1:
            for way, command in json.loads(sys.argv[1]):
                inner = subprocess.run([*command, sys.executable, "-c", leaving], capture_output=True, text=True, timeout=30)
                assert inner.returncode == 0 and inner.stderr == "", inner
                assert sorted(inner.stdout.splitlines()) == [f"{way} 0/2", f"{way} 1/2"], inner
        pid = os.fork()
        if pid == 0:      # neither the end nor an exchange of a forked child may speak on its parent's connection
            try:
                job.allgather(b"")
            except RuntimeError:
                job.finalize()
                os._exit(0)
            os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0
        assert job.allgather(b"%d" % job.rank) == [b"%d" % rank for rank in range(job.size)]
        job.finalize()
"""


@pytest.mark.parametrize("launcher", LAUNCHERS.values(), ids=LAUNCHERS)
def test_children_and_nested_launchers(launcher: Launcher, start: Start, script: Callable[[str], str]) -> None:
    # Inside a Slurm step other launchers ask Slurm for their hosts; ours does not.
    names = ["run"] if launcher.name.startswith("srun") else ["run", "hydra", "hydra-port", "prrte"]
    inner = [(row.way, row.command(2, [])) for row in map(LAUNCHERS.__getitem__, names) if not row.missing()]
    done = start(launcher, 2, [sys.executable, script(FAMILY), json.dumps(inner)])
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.parametrize("inner", ["run", "hydra", "hydra-port", "prrte"])
@pytest.mark.parametrize("outer", ["run", "hydra", "hydra-port", "prrte"])
def test_launcher_below_a_shell_that_is_a_rank(outer: str, inner: str, start: Start) -> None:
    """No rank of the outer launcher ever joined, so nothing but the variables tells the two apart."""
    need(LAUNCHERS[inner])
    program = "import os; from pympx.bootstrap import join; job = join(); job.finalize(); "
    program += "os.write(1, f'{job.name} {job.rank}/{job.size}{chr(10)}'.encode())"
    command = shlex.join(LAUNCHERS[inner].command(2, [sys.executable, "-c", program]))
    done = start(outer, 1, ["sh", "-c", f"{command}; exit $?"])
    way = LAUNCHERS[inner].way
    assert (done.returncode, done.stderr) == (0, b"")
    assert sorted(done.stdout.decode().splitlines()) == [f"{way} 0/2", f"{way} 1/2"]


def test_key_of_outer_launcher_is_not_taken(script: Callable[[str], str]) -> None:
    """Hydra below a shell that ``pympx run`` started passes PYMPX_JOB_KEY_FD on; its ranks agree on a key of their own."""
    program = script("""
        import hashlib, os
        from pympx.bootstrap import join
        job = join()
        os.write(1, f"{job.size} {hashlib.sha256(job.job_key()).hexdigest()}\\n".encode())   # one write: Hydra tears pieces
        job.finalize()
    """)
    done = execute([*RUN, "-n", "1", "sh", "-c", f"{mpiexec()} -n 2 {sys.executable} {program}"])
    lines = done.stdout.decode().splitlines()
    assert (done.returncode, done.stderr, len(lines)) == (0, b"", 2)
    assert lines[0] == lines[1] and lines[0].startswith("2 ")
