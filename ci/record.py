"""The record of a lane's long run: records/LANE.toml, kept in the repository."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "CPU implementer"):
            return value.strip()
    return platform.machine()


def _quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def write_record(
    lane: str, *, seconds: float, seed: int, passed: int, failed: int, skipped: int, notes: list[str], directory: Path = ROOT / "records"
) -> Path:
    """Write what a long run of `lane` gave and where it ran; return the file. `notes` are lines of the run worth keeping."""
    commit = _git("rev-parse", "HEAD") or "unknown"
    # another lane's record does not make the sources other ones
    changed = bool(_git("status", "--porcelain", "--", ".", ":(exclude)records"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    lines = [
        f"lane = {_quote(lane)}",
        f"commit = {_quote(commit)}",
        f"uncommitted_changes = {str(changed).lower()}",
        f"date = {datetime.now(UTC).strftime('%Y-%m-%dT%H:%M:%SZ')}",
        f"seed = {seed}",
        f"seconds = {seconds:.1f}",
        f"passed = {passed}",
        f"failed = {failed}",
        f"skipped = {skipped}",
        "notes = [",
        *(f"    {_quote(note)}," for note in notes),
        "]",
        "",
        "[machine]",
        f"cores = {len(os.sched_getaffinity(0))}",
        f"processor = {_quote(_processor())}",
        f"memory_gib = {memory:.1f}",
        f"kernel = {_quote(platform.release())}",
        f"python = {_quote(platform.python_version())}",
    ]
    directory.mkdir(exist_ok=True)
    path = directory / f"{lane}.toml"
    path.write_text("\n".join(lines) + "\n")
    return path
