"""Puts what a target found new into its kept corpus, minimised: ``python tests/fuzz/keep.py TARGET...``, after a run of test_fuzz.py.

Inputs called found-* once showed a fault; they stay whatever they cover.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from test_fuzz import BUILD, HERE, LIMITS, command, environment


def keep(target: str) -> None:
    """Merge a target's new inputs into its corpus."""
    kept, new = HERE / "corpus" / target, BUILD / "corpus" / target
    kept.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as place:
        itself = Path(place) / target  # libFuzzer starts it again and again
        itself.write_text(f'#!/bin/sh\nexec {shlex.join(command(target))} "$@"\n')
        itself.chmod(0o700)
        env = environment() | {"PYMPX_TEST_FUZZER": str(itself)}
        subprocess.run([*command(target), *LIMITS, "-set_cover_merge=1", folder, str(kept), str(new)], env=env, cwd=BUILD, check=True)
        for old in kept.iterdir():
            if not old.name.startswith("found-"):
                old.unlink()
        for path in Path(folder).iterdir():
            shutil.copy(path, kept / path.name[:12])
    print(f"{target}: {len(list(kept.iterdir()))} inputs, {sum(path.stat().st_size for path in kept.iterdir())} bytes")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        keep(name)
