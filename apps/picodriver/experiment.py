"""PicoDriver's experiment with Python: what it gains to port only the fast path of a transport. See README.md beside this file.

Runs the same programs over `verbs`, whose data path is C++, and over `verbs-python`, whose data path is pyverbs, in turns on one machine
with an RDMA device; and perftest, which is the floor. Prints a table; --png draws it, --json keeps all numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.append(str(ROOT))  # after the installed packages, so that the source tree never hides them

PERFTEST, NATIVE, PYTHON = "perftest", "verbs", "verbs-python"
#: what is measured, by key: what it is, its unit, whether more is better
QUANTITIES = {
    "us_8": ("latency, 8 bytes", "us", False),
    "us_64K": ("latency, 64 KiB", "us", False),
    "MBps_1M": ("bandwidth, 1 MiB", "MB/s", True),
    "heat": ("heat, 31 x 31 points", "s", False),
    "cg": ("NPB CG, class S", "s", False),
    "is": ("NPB IS, class S", "s", False),
}
PROGRAMS = {
    "heat": ["apps/heat/heat.py", "--size", "31"],
    "cg": ["apps/npb/npb.py", "cg", "--class", "S"],
    "is": ["apps/npb/npb.py", "is", "--class", "S"],
}
_LIMIT_S = 900
_PORT = 18515


def arguments(argv: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="experiment.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3, metavar="N", help="measure everything so often, and take the best (default 3)")
    parser.add_argument("--rounds", type=int, default=4000, metavar="N", help="round trips of 8 bytes per measurement (default 4000)")
    parser.add_argument("--device", default="", help="RDMA device (default: PYMPX_VERBS_DEVICE, else the first)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results as JSON")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw the result (needs matplotlib)")
    return parser.parse_args(argv)


def first_device() -> str:
    """Return the name of an RDMA device. Raises SystemExit with what to do where there is none."""
    devices = Path("/sys/class/infiniband")
    found = sorted(entry.name for entry in devices.iterdir()) if devices.is_dir() else []
    if not found:
        raise SystemExit("experiment: no RDMA device here; on soft-RoCE: rdma link add rxe0 type rxe netdev INTERFACE")
    return os.environ.get("PYMPX_VERBS_DEVICE") or found[0]


def roce_gid(device: str) -> int:
    """Return the index of the GID that pympx takes: RoCE v2, made of an IPv4 address."""
    port = Path("/sys/class/infiniband", device, "ports", "1")
    for path in sorted((port / "gids").iterdir(), key=lambda p: int(p.name)):
        try:
            kind = (port / "gid_attrs" / "types" / path.name).read_text().strip()
        except OSError:
            continue  # an empty entry
        if kind == "RoCE v2" and path.read_text().startswith("0000:0000:0000:0000:0000:ffff:"):
            return int(path.name)
    return 0


def perftest(program: str, device: str, gid: int, *words: str) -> list[str]:
    """Run both sides of one of perftest's programs; return the columns of its last line. Raises SystemExit where it gives none."""
    if not shutil.which(program):
        raise SystemExit(f"experiment: there is no {program}: apt-get install perftest")
    command = [program, "-d", device, "-x", str(gid), "-p", str(_PORT), "-F", *words]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        for _ in range(100):  # until the server listens
            done = subprocess.run([*command, "127.0.0.1"], capture_output=True, text=True, timeout=_LIMIT_S, check=False)
            rows = re.findall(r"^ *\d+ +\d+ .*$", done.stdout, re.MULTILINE)
            if rows:
                server.wait(30)
                return str(rows[-1]).split()
            if server.poll() is not None:
                break
            time.sleep(0.1)
        server.kill()
    raise SystemExit(f"experiment: {program} gave nothing: {(done.stderr or done.stdout).strip()[-300:]}")


def start(transport: str, device: str, *words: str) -> str:
    """Run a program on two ranks over a transport; return what it printed. Raises SystemExit with its stderr if it fails."""
    environment = {**os.environ, "PYMPX_TRANSPORT": transport, "PYMPX_VERBS_DEVICE": device, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(HERE / "site")  # where the plugin verbs-python is
    mpiexec = Path(sys.executable).with_name("mpiexec")
    command = [str(mpiexec if mpiexec.exists() else "mpiexec"), "-n", "2", sys.executable, *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
    if done.returncode:
        raise SystemExit(f"experiment: {' '.join(words)} over {transport} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def measure_perftest(device: str, rounds: int) -> dict[str, float]:
    """Return what perftest does: the typical latency of ib_send_lat, the average bandwidth of ib_read_bw."""
    gid = roce_gid(device)
    found = {}
    for key, length, times in (("us_8", 8, rounds), ("us_64K", 64 << 10, rounds // 10)):
        found[key] = float(perftest("ib_send_lat", device, gid, "-s", str(length), "-n", str(max(5, times)))[4])
    bandwidth = perftest("ib_read_bw", device, gid, "-s", str(1 << 20), "-n", str(max(8, rounds // 20)), "-t", "8")
    found["MBps_1M"] = float(bandwidth[3]) * (1 << 20) / 1e6
    return found


def measure(transport: str, device: str, rounds: int) -> dict[str, float]:
    """Return what two ranks of pympx do over a transport; every program must verify its result."""
    found: dict[str, float] = json.loads(start(transport, device, str(HERE / "pingpong.py"), str(rounds)))
    with tempfile.TemporaryDirectory() as folder:
        for name, words in PROGRAMS.items():
            record = Path(folder) / f"{name}.json"
            start(transport, device, str(ROOT / words[0]), *words[1:], "--json", str(record))
            found[name] = json.loads(record.read_text())["seconds"]
    return found


def lines_of(folder: Path, *suffixes: str) -> int:
    """Return how many lines of code the files of a folder have, blank ones left out."""
    files = [path for path in folder.rglob("*") if path.suffix in suffixes]
    return sum(bool(line.strip()) for path in files for line in path.read_text().splitlines())


def lines_of_code() -> dict[str, int]:
    """Return the sizes of what is compared."""
    return {
        "verbs: fast path, C++": lines_of(ROOT / "transports" / "verbs", ".cc", ".hh"),
        "verbs: control path, Python": lines_of(ROOT / "transports" / "verbs", ".py", ".pyx"),
        "verbs-python: all of it, Python": lines_of(HERE / "site", ".py"),
    }


def table(best: dict[str, dict[str, float]]) -> str:
    """Return the result as a table of Markdown."""
    lines = ["| | perftest | verbs | verbs-python | verbs / perftest | time, verbs-python / verbs |", "|---|---|---|---|---|---|"]
    for key, (what, unit, more) in QUANTITIES.items():
        floor, native, python = (best[side].get(key) for side in (PERFTEST, NATIVE, PYTHON))
        assert native is not None
        assert python is not None
        against = f"{native / floor:.2f}" if floor else ""
        slower = native / python if more else python / native
        columns = [f"{what}, {unit}", f"{floor:.4g}" if floor else "", f"{native:.4g}", f"{python:.4g}", against, f"{slower:.1f}"]
        lines.append(f"| {' | '.join(columns)} |")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Measure, print, draw; return the exit code."""
    options = arguments(argv)
    device = options.device or first_device()
    sides: dict[str, Callable[[], dict[str, float]]] = {
        PERFTEST: lambda: measure_perftest(device, options.rounds),
        NATIVE: lambda: measure(NATIVE, device, options.rounds),
        PYTHON: lambda: measure(PYTHON, device, options.rounds),
    }
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    progress = tqdm(total=options.turns * len(sides), disable=None, leave=False)  # shown on a terminal only
    for turn in range(options.turns):
        for side, run in sides.items():
            progress.set_description(f"turn {turn + 1} of {options.turns}, {side}")
            runs[side].append(run())
            progress.update()
    progress.close()
    best = {
        side: {key: (max if QUANTITIES[key][2] else min)(one[key] for one in all_of) for key in all_of[0]} for side, all_of in runs.items()
    }
    code = lines_of_code()
    print(f"{device}, two ranks, the best of {options.turns} turns\n\n{table(best)}\n")
    print("\n".join(f"{lines} lines: {what}" for what, lines in code.items()))
    if options.json:
        results: dict[str, Any] = {"device": device, "kernel": os.uname().release, "runs": runs, "best": best, "lines": code}
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    if options.png:
        from apps.picodriver.picture import draw

        draw(options.png, best, NATIVE, QUANTITIES, device)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
