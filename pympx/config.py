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
    if not 0 <= value <= 1e9:  # NaN neither
        raise ValueError("expecting seconds from 0 to 1e9")
    return value


def _bytes(text: str) -> int:
    units = {"k": 10, "m": 20, "g": 30}
    shift = units.get(text[-1:].lower(), 0)
    value = int(text[:-1] if shift else text) << shift
    if not 0 <= value < 1 << 62:
        raise ValueError("expecting bytes from 0 to 2^62")
    return value


def _auto_or_off(text: str) -> str:
    if text not in ("auto", "off"):
        raise ValueError("expecting auto or off")
    return text


def _whole(text: str) -> int:
    value = int(text)
    if not 0 <= value < 1 << 31:
        raise ValueError("expecting a whole number from 0 to 2^31")
    return value


def _between(least: int, most: int, what: str) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = _bytes(text)
        if not least <= value <= most:
            raise ValueError(f"expecting {what} from {least} to {most}")
        return value

    return parse


_depth = _between(8, 4095, "a number")
_backlog = _between(1, 1 << 24, "calls")
_slot = _between(512, 1 << 20, "bytes")
_inline = _between(0, 1024, "bytes")
_exponent = _between(1, 31, "an exponent")
_retries = _between(0, 6, "a number")


def _mtu(text: str) -> int:
    if text not in ("256", "512", "1024", "2048", "4096"):
        raise ValueError("expecting 256, 512, 1024, 2048 or 4096")
    return int(text)


VARIABLES = {
    v.name: v
    for v in (
        Variable("PYMPX_TRANSPORT", str, "auto", "auto, shm, verbs, tcp, mpi, fault or a plugin's name; a named one never falls back"),
        Variable(
            "PYMPX_BOOTSTRAP", str, "", "how ranks join: pmi1, pmix, env, slurm, mpi4py, single; empty: by the launcher's signs"
        ),
        Variable("PYMPX_REPORT", _flag, "0", "1: rank 0 prints at the end who talked to whom over what, protocols and bytes"),
        Variable("PYMPX_TIMEOUT", _seconds, "0", "seconds after which a blocking call raises; 0: never"),
        Variable("PYMPX_EAGER_WINDOW", _bytes, "4M", "bytes of unexpected messages that a rank buffers per peer (k, M, G)"),
        Variable("PYMPX_SPIN", _seconds, "50e-6", "seconds of polling before a wait sleeps; with sched_yield where ranks outnumber cores"),
        Variable("PYMPX_KEEP_GOING", _flag, "0", "1: an exception on one rank does not end the others; run --keep-going sets it"),
        Variable("PYMPX_LINK_TIMEOUT", _seconds, "30", "seconds without a sign of a peer's host before the peer counts as failed"),
        Variable("PYMPX_REGCACHE", _auto_or_off, "auto", "off: memory is registered anew for each transfer, never kept registered"),
        Variable("PYMPX_RPC_BACKLOG", _backlog, "16384", "calls to one rank whose answers are to come; further ones wait (1 to 2^24)"),
        Variable("PYMPX_FAULT", str, "", "transport fault: over=NAME and what it suffers: no_resource=, burst=, late=, hold=, seed= ..."),
        Variable("PYMPX_TCP_INTERFACES", str, "", "tcp: interfaces or networks (eth0,10.0.0.0/8) to use, in order of preference"),
        Variable("PYMPX_TCP_PORTS", str, "", "tcp: ports to listen on, a-b; empty: any"),
        Variable("PYMPX_VERBS_DEVICE", str, "", "verbs: device or device:port; empty: the best port that is active"),
        Variable("PYMPX_VERBS_GID", _whole, "", "verbs: index of the port's GID; empty: on Ethernet RoCE v2 over IPv4, on InfiniBand 0"),
        Variable("PYMPX_VERBS_MTU", _mtu, "", "verbs: bytes in a packet, 256 to 4096; empty: the port's"),
        Variable("PYMPX_VERBS_SEND_DEPTH", _depth, "64", "verbs: work requests that a queue pair holds"),
        Variable("PYMPX_VERBS_RECEIVE_DEPTH", _depth, "32", "verbs: messages that a peer may send ahead"),
        Variable("PYMPX_VERBS_SLOT", _slot, "8K", "verbs: bytes of the largest message that is copied through registered memory"),
        Variable("PYMPX_VERBS_INLINE", _inline, "128", "verbs: bytes that go inside a work request, where the device can"),
        Variable("PYMPX_VERBS_RENDEZVOUS", _bytes, "16K", "verbs: from this size on messages go by RDMA READ between users' buffers"),
        Variable("PYMPX_VERBS_TIMEOUT", _exponent, "14", "verbs: a packet is sent again after 4.096 us * 2^TIMEOUT, 1 to 31"),
        Variable("PYMPX_VERBS_RETRIES", _retries, "6", "verbs: so often, 0 to 6; then the link is broken (7 is for ever on some devices)"),
        Variable("PYMPX_LIBPMIX", str, "", "bootstrap pmix: path of libpmix.so.2; empty: the launcher's, the system's, the environment's"),
        Variable(
            "PYMPX_PORT", _whole, "", "bootstrap env, slurm: rank 0's port; empty: MASTER_PORT (torchrun: plus one); by job and step"
        ),
        Variable("PYMPX_JOIN_TIMEOUT", _whole, "60", "bootstrap env, slurm: whole seconds that all ranks have to come together"),
        Variable("PYMPX_HOSTS", str, "", "run: hosts for the ranks, a,b or a:2,b:6, where --hosts does not say; empty: this one"),
        Variable(
            "PYMPX_RSH", str, "ssh -x -o BatchMode=yes -o ConnectTimeout=10", "run --hosts: runs a command on a host, called as ssh is"
        ),
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
