"""The conformance suite against the fast path of verbs, whose objects are made in C for it, with and without trouble."""

from __future__ import annotations

import os
import subprocess

import guest
import pytest

TRANSPORTS = guest.NATIVE.parent / "transports"
TROUBLE = "no_resource=0.05,burst=0.0003,late=0.3,hold=0.1,delay=0.001,seed=7"


@pytest.mark.parametrize("layer", ["", "fault"])
def test_conformance(layer: str) -> None:
    words = [str(guest.NATIVE / "transport" / "conformance"), f"--transport={guest.NATIVE / 'verbs' / 'verbs_objects.so'}", "--seconds=150"]
    if layer:
        words += [f"--layer={TRANSPORTS / 'fault' / '_fastpath.so'}", f"--settings={TROUBLE}"]
    environment = {**os.environ, "VERBS_LIBRARY": str(TRANSPORTS / "verbs" / "_fastpath.so"), "PYMPX_VERBS_DEVICE": "rxe1"}
    done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900, check=False)
    print(done.stdout[-20000:])
    assert done.returncode == 0
    assert "0 failed" in done.stdout
