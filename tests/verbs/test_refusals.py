"""What verbs cannot do it says in one line, with the cure."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import guest
import pytest
from pympx.transports.verbs import devices
from pympx.transports.verbs.plugin import pympx_transport

LINK = guest.ROOT / "ci" / "verbs" / "link"
NOBODY = 65534


@pytest.fixture
def wire_down() -> Iterator[None]:
    subprocess.run([LINK, "down", "v0"], check=True)
    yield
    subprocess.run([LINK, "up", "v0"], check=True)


def test_the_best_port_is_found() -> None:
    found = devices.ports()
    assert {port.device for port in found} == set(guest.DEVICES)
    assert all(port.active and port.software for port in found)
    assert devices.choose("rxe2:1").device == "rxe2"


def test_another_device() -> None:
    with pytest.raises(LookupError, match=r"PYMPX_VERBS_DEVICE='mlx5_0' is none of the devices here: rxe1:1, rxe2:1"):
        devices.choose("mlx5_0")


def test_a_port_that_is_down(wire_down: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYMPX_VERBS_DEVICE", "rxe1")
    assert pympx_transport().probe() == "rxe1 port 1 is DOWN: ip link set v0 up"


def test_too_little_locked_memory() -> None:
    """In a child, who gives up its rights."""
    child = os.fork()
    if not child:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (1 << 20, 1 << 20))
        os.setuid(NOBODY)
        reason = pympx_transport().probe()
        os._exit(0 if reason == "a process may lock 1024 KiB of memory here, verbs needs 4096 at least: ulimit -l unlimited" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_job_says_why(tmp_path: Path) -> None:
    program = "from pympx import MPI; MPI.COMM_WORLD.Barrier()"
    environment = {**os.environ, "PYMPX_TRANSPORT": "verbs", "PYMPX_VERBS_DEVICE": "none0"}
    done = subprocess.run(
        [str(Path(sys.executable).with_name("mpiexec")), "-n", "2", sys.executable, "-P", "-c", program],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "PYMPX_VERBS_DEVICE='none0' is none of the devices here" in done.stderr
    assert "Traceback" not in done.stderr
