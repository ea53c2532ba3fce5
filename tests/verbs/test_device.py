"""What a guest of ci/verbs has: devices that pyverbs finds, active ports with the largest MTU, memory to pin, a wire that they use."""

from __future__ import annotations

import importlib
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

MACHINE = os.environ.get("VERBS_DEVICES", "")  # ci/verbs/vm and ci/verbs/pair set it
DEVICES = {"one": ["rxe0"], "two": ["rxe1", "rxe2"], "wire": ["rxe0"]}.get(MACHINE, [])
LINK = Path(__file__).resolve().parents[2] / "ci" / "verbs" / "link"
ROUNDS = 1000

pytestmark = pytest.mark.skipif(not DEVICES, reason="not in a guest: ci/verbs/vm -- pytest tests/verbs")
two = pytest.mark.skipif(MACHINE != "two", reason="needs ci/verbs/vm --devices two")


@pytest.fixture
def pyverbs_device(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module pyverbs.device, which Debian has outside of .venv."""
    monkeypatch.setattr(sys, "path", [*sys.path, "/usr/lib/python3/dist-packages"])
    return importlib.import_module("pyverbs.device")


def sent(netdev: str) -> int:
    return int(Path(f"/sys/class/net/{netdev}/statistics/tx_packets").read_text())


def pingpong() -> subprocess.CompletedProcess[str]:
    """Send ROUNDS times from rxe2 to rxe1 and back; the client's result."""
    command = ["ibv_rc_pingpong", "-g", "1", "-s", "64", "-n", str(ROUNDS), "-d"]
    server = subprocess.Popen([*command, "rxe1"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        done = subprocess.CompletedProcess([""], 1, "")
        while done.returncode and server.poll() is None:  # until the server listens
            done = subprocess.run([*command, "rxe2", "127.0.0.1"], capture_output=True, text=True, timeout=30, check=False)
        return done
    finally:
        server.kill()
        server.communicate()


def test_the_devices_are_there(pyverbs_device: Any) -> None:
    names = sorted(device.name.decode() for device in pyverbs_device.get_device_list())
    assert names == DEVICES


@pytest.mark.parametrize("name", DEVICES)
def test_a_port_is_active_with_an_mtu_of_4096(pyverbs_device: Any, name: str) -> None:
    enums = importlib.import_module("pyverbs.enums")
    with pyverbs_device.Context(name=name) as context:
        port = context.query_port(1)
        assert port.state == enums.IBV_PORT_ACTIVE
        assert port.active_mtu == enums.IBV_MTU_4096


def test_memory_may_be_pinned_without_limit() -> None:
    assert resource.getrlimit(resource.RLIMIT_MEMLOCK) == (resource.RLIM_INFINITY, resource.RLIM_INFINITY)


@two
def test_packets_cross_the_wire() -> None:
    before = sent("v0"), sent("v1")
    done = pingpong()
    assert done.returncode == 0, done.stdout + done.stderr
    assert sent("v0") - before[0] >= ROUNDS
    assert sent("v1") - before[1] >= ROUNDS


@two
def test_packets_cross_the_wire_again_after_it_was_cut(pyverbs_device: Any) -> None:
    enums = importlib.import_module("pyverbs.enums")
    with pyverbs_device.Context(name="rxe2") as context:
        subprocess.run([LINK, "down", "v1"], check=True, timeout=30)
        assert context.query_port(1).state == enums.IBV_PORT_DOWN
        subprocess.run([LINK, "up", "v1"], check=True, timeout=30)
        assert context.query_port(1).state == enums.IBV_PORT_ACTIVE
    test_packets_cross_the_wire()
