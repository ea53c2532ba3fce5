"""The job's key travels as it should: in no command line, no environment, no output, no file."""

from __future__ import annotations

import base64
import subprocess
import sys
from pathlib import Path

import pytest
from support import environment

#: says in a file, which only the test reads, what the key is; then looks for it wherever other users might
PROGRAM = """
import base64, os, sys
from pathlib import Path
from pympx import MPI, runtime

comm = MPI.COMM_WORLD
comm.Barrier()
key = runtime.bootstrap().job_key()
forms = [key, key.hex().encode(), base64.b64encode(key).rstrip(b"="), base64.urlsafe_b64encode(key).rstrip(b"=")]
assert len(set(comm.allgather(key))) == 1 and len(key) == 32 and key != bytes(32)
looked_at = 0
for process in Path("/proc").iterdir():
    for name in ("cmdline", "environ", "comm"):
        try:
            text = (process / name).read_bytes()
        except OSError:
            continue
        looked_at += 1
        assert not any(form in text for form in forms), f"the key stands in {process / name}"
assert looked_at > 10
for folder in ("/dev/shm", "/tmp"):
    for path in Path(folder).iterdir():
        assert not any(form.decode("latin-1") in path.name for form in forms)
if comm.rank == 0:
    fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    os.write(fd, key)
    os.close(fd)
comm.Barrier()
print("looked")
"""


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize("launcher", ["run", "agent", "hydra"])
def test_the_key_is_nowhere_to_be_seen(launcher: str, transport: str, tmp_path: Path) -> None:
    run = [sys.executable, "-P", "-m", "pympx", "run", "-n", "2"]
    words = {
        "run": run,
        "agent": [*run, "--hosts", "localhost:2"],
        "hydra": [str(Path(sys.executable).with_name("mpiexec")), "-n", "2"],
    }[launcher]
    program, secret = tmp_path / "program.py", tmp_path / "key"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [*words, sys.executable, "-P", str(program), str(secret)], env=environment(PYMPX_TRANSPORT=transport, PYMPX_REPORT="1"),
        cwd=tmp_path, capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.count(b"looked") == 2 and b"bytes" in done.stdout  # the report too
    key = secret.read_bytes()
    for form in (key, key.hex().encode(), base64.b64encode(key).rstrip(b"="), base64.urlsafe_b64encode(key).rstrip(b"=")):
        assert form not in done.stdout


def test_a_key_file_that_others_can_read_or_write_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"k" * 32)
    for mode, refused in ((0o600, False), (0o400, False), (0o604, True), (0o602, True), (0o620, True), (0o640, False)):
        path.chmod(mode)
        place = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "PYMPX_JOB_KEY_FILE": str(path)}
        done = subprocess.run(
            [sys.executable, "-P", "-c", "from pympx import MPI; MPI.COMM_WORLD.Barrier(); print('joined')"], env=environment(**place),
            cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        if refused:
            assert done.returncode != 0 and "chmod 600" in done.stderr and "Traceback" not in done.stderr, (oct(mode), done.stderr)
        else:
            assert (done.returncode, done.stdout) == (0, "joined\n"), (oct(mode), done.stderr)
