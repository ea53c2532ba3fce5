"""The PYMPX_* environment variables: one typed table with help, printed by ``python -m pympx info --config``."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


class ConfigError(ValueError):
    """A PYMPX_* variable has a value that cannot be used. The message is one line."""


@dataclass(frozen=True, slots=True)
class Variable:
    """One environment variable: name, parser of its text, default as text, help."""

    name: str
    parse: Callable[[str], Any]
    default: str
    help: str


def _flag(text: str) -> bool:
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("", "0", "false", "no", "off"):
        return False
    raise ValueError("expecting 0 or 1")


def _seconds(text: str) -> float:
    value = float(text)
    if value < 0:
        raise ValueError("must not be negative")
    return value


def _bytes(text: str) -> int:
    units = {"k": 10, "m": 20, "g": 30}
    shift = units.get(text[-1:].lower(), 0)
    value = int(text[:-1] if shift else text) << shift
    if value < 0:
        raise ValueError("must not be negative")
    return value


VARIABLES = {
    v.name: v
    for v in (
        Variable("PYMPX_TRANSPORT", str, "auto", "transport auto, shm, tcp or a plugin's name; a named one never falls back"),
        Variable("PYMPX_BOOTSTRAP", str, "", "how ranks find each other: pmi1, env, single; empty: by the launcher's signs"),
        Variable("PYMPX_REPORT", _flag, "0", "1: rank 0 prints at the end who talked to whom over what, protocols and bytes"),
        Variable("PYMPX_TIMEOUT", _seconds, "0", "seconds after which a blocking call raises; 0: never"),
        Variable("PYMPX_EAGER_WINDOW", _bytes, "4M", "bytes of unexpected messages that a rank buffers per peer (k, M, G)"),
        Variable("PYMPX_SPIN", _seconds, "", "seconds of polling before a wait sleeps; empty: 50e-6, less when ranks outnumber cores"),
        Variable("PYMPX_TCP_INTERFACES", str, "", "tcp: interfaces or networks (eth0,10.0.0.0/8) to use, in order of preference"),
        Variable("PYMPX_TCP_PORTS", str, "", "tcp: ports to listen on, a-b; empty: any"),
        Variable("PYMPX_PORT", int, "", "bootstrap env: port of rank 0; empty: MASTER_PORT, plus one under torchrun"),
        Variable("PYMPX_JOIN_TIMEOUT", int, "60", "bootstrap env: whole seconds that all ranks have to come together"),
        Variable("PYMPX_JOB_KEY_FILE", str, "", "file that holds the job's secret, for launchers without a private channel"),
    )
}

#: what pympx sets for its own child processes and tests; not for users
_INTERNAL = ("PYMPX_BOOT", "PYMPX_CI", "PYMPX_JOB_KEY_FD")


def unknown(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Return the names in `environ` that begin with PYMPX_ and mean nothing, sorted: typing errors, mostly."""
    known = {*VARIABLES, *_INTERNAL}
    return sorted(name for name in environ if name.startswith("PYMPX_") and name not in known and not name.startswith("PYMPX_TEST"))


def get(name: str, environ: Mapping[str, str] = os.environ) -> Any:
    """Return the parsed value of the variable `name`. Raises ConfigError naming variable, value and reason."""
    variable = VARIABLES[name]
    text = environ.get(name, variable.default)
    try:
        return variable.parse(text) if text or variable.parse is str else None
    except ValueError as error:
        raise ConfigError(f"{name}={text!r}: {error}; {variable.help}") from None
