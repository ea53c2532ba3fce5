"""One job over verbs on two virtual machines with a wire between; only in the long form, since two machines on two cores are slow."""

from __future__ import annotations

import secrets
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAIR = ROOT / "ci" / "verbs" / "pair"


def start(tmp_path: Path, program: str, *words: str) -> list[str]:
    """Run a program on a rank in each machine; return the lines of the first one. The job must end well."""
    key = tmp_path / "key"
    key.write_bytes(secrets.token_bytes(32))
    key.chmod(0o600)
    settings = ["PYMPX_BOOTSTRAP=env", "MASTER_ADDR=10.13.0.1", "MASTER_PORT=29500", "WORLD_SIZE=2", f"PYMPX_JOB_KEY_FILE={key}"]
    settings += ["PYMPX_TRANSPORT=verbs", "OMP_NUM_THREADS=1", f"PYTHONPATH={ROOT / 'tests' / 'faults'}"]
    command = [str(PAIR), "--timeout", "560", "--", "sh", "-c", 'RANK=$HOST_INDEX exec "$0" "$@"', "env", *settings, sys.executable, "-P"]
    done = subprocess.run([*command, program, *words], capture_output=True, text=True, timeout=600, check=False)
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    return [line.removeprefix("0: ") for line in done.stdout.splitlines() if line.startswith("0: ")]


def test_heat_verifies(tmp_path: Path) -> None:
    lines = start(tmp_path, str(ROOT / "apps" / "heat" / "heat.py"), "--size", "15")
    assert "VERIFIED" in lines
    assert any(line.startswith("transport verbs: ") and "(100.0 % of inter-rank bytes)" in line for line in lines)


def test_every_message_arrives_in_order(tmp_path: Path) -> None:
    assert start(tmp_path, str(ROOT / "tests" / "verbs" / "rounds_program.py"), "1", "2")
