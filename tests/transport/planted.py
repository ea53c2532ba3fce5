"""Shows that the conformance suite finds each planted fault: the fitting test fails, with the fitting words.

A crash or a hang of the suite does not count as found.

    planted.py CONFORMANCE FAULTY_LIBRARY WRAPPED_LIBRARY FAULT [--loopback]
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

_ORDER = r"order: message \d+ (arrived where \d+ was due|was to be of kind \d+)"
#: fault: (the test that is to find it, "" for the whole suite; what it is to say)
FITTING = {
    "reorder": ("am: mixed kinds and sizes between two ifaces*", _ORDER),
    "drop": ("am: mixed kinds and sizes between two ifaces*", _ORDER),
    "duplicate": ("am: mixed kinds and sizes between two ifaces*", _ORDER),
    "wrong_hdr": ("am: mixed kinds and sizes between two ifaces*", r"header: wrong bytes in message"),
    "wrong_content": ("am: mixed kinds and sizes between two processes*", r"content: wrong bytes in message"),
    "wrong_sender": ("am: four processes*", r"is attributed to no ep that lives"),
    "double_completion": ("am: mixed kinds and sizes between two ifaces*", r"completion ran 2 times for one am_zcopy"),
    "lost_completion": ("am: mixed kinds and sizes between two ifaces*", r"\d+ completions never came, not even by ep_destroy"),
    "early_completion": ("am: mixed kinds and sizes between two ifaces*", r"content: wrong bytes .* poison"),
    "inline_completion": ("get: sizes*", r"the completion of get_zcopy ran inside the call"),
    "inline_handler": ("am: mixed kinds and sizes between two ifaces*", r"a handler ran outside progress"),
    "touch_after_completion": ("get: sizes*", r"a buffer of \d+ bytes was touched after its completion"),
    "short_get": ("get: sizes*", r"get of \d+ bytes from \d+: wrong content"),
    "wide_put": ("put: sizes*", r"put of \d+ bytes wrote outside of its range"),
    "beyond_limit": ("am: zero length*", r"am_bcopy beyond max_am_bcopy returned 0"),
    "no_back_pressure": ("flow: a sleeping receiver*", r"back-pressure: \d+ messages of \d+ bytes were accepted"),
    "lost_wakeup": ("event: a message between arm and poll*", r"lost wake-up: round \d+"),
    "busy_progress": ("flow: progress returns 0*", r"idle: progress keeps reporting events"),
    "lost_cancel": ("life: an ep destroyed*", r"\d+ of \d+ completions did not come before ep_destroy returned"),
    "descriptor_reused": ("am: descriptors kept*", r"a kept descriptor of \d+ bytes changed"),
    "few_bytes": ("am: the byte counters*", r"bytes counted as sent"),
    "kept_by_child": ("life: a forked child*", r"the child still has \d+ descriptors"),
    "overclaims": ("", r"advertised, but exercised by no test: CONNECT_EP"),
}


def main() -> int:
    """Return 0 when the fault was found as it should be."""
    conformance, faulty, wrapped, fault, *flags = sys.argv[1:]
    test, words = FITTING[fault]
    env = dict(os.environ, FAULTY_LIBRARY=wrapped, FAULTY_FAULT=fault, PYMPX_TEST_LONG="0")
    env.pop("PYMPX_TEST_RECORD", None)
    command = [conformance, f"--transport={faulty}", *flags, *([f"--test-case={test}"] if test else [])]
    try:
        run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        print(f"{fault}: the suite hung")
        return 1
    said = run.stdout + run.stderr
    crashed = run.returncode < 0 or run.returncode > 1 or re.search(r"CRASHED|watchdog:|Sanitizer|runtime error:|wait status", said)
    if run.returncode == 1 and not crashed and re.search(words, said):
        print(f"{fault}: found by '{test or 'the whole suite'}'")
        return 0
    why = "crashed or hung" if crashed else "was not found" if run.returncode == 0 else "was found in other words"
    print(f"{fault}: {why} (exit {run.returncode}, wanted /{words}/)\n{said}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
