"""Every text as the value of every setting: usable, or refused in one line."""

from __future__ import annotations

import math
import sys
from pathlib import Path

from fuzzing import Input, instrumented, run

with instrumented("pympx.config", "pympx.bootstrap", "pympx.launcher.place", "pympx.transports"):
    from pympx.transports.fault import plugin as fault
    from pympx.transports.tcp import plugin as tcp

    from pympx import config
    from pympx.bootstrap import environment, slurm, star
    from pympx.bootstrap.base import BootstrapError
    from pympx.bootstrap.env import Env
    from pympx.launcher import place

_NAMES = sorted(config.VARIABLES)
_HINTS = ("0x", "1e", "inf", "nan", "-", "K", "m", "G", "٣", "127.0.0.0/8", "lo", "over=", ",", ":", "1-2", "[1-3]", "\n", "9" * 30)
_AVAILABLE = tcp.interfaces()


def _text(data: Input) -> str:
    text = ""
    while data and len(text) < 6000:
        kind = data.number() % 4
        if kind == 0:
            text += data.some(30).decode("utf-8", "surrogateescape")
        elif kind == 1:
            text += _HINTS[data.number() % len(_HINTS)]
        elif kind == 2:
            text += str(data.number(4))
        else:
            text += chr(48 + data.number() % 75) * data.number(2)
    return text.replace("\0", "")  # which no environment can hold


def one_input(data: Input) -> None:
    name = _NAMES[data.number() % len(_NAMES)]
    text = _text(data)
    try:
        value = config.get(name, {name: text})
        if isinstance(value, float):
            assert math.isfinite(value) and value >= 0, f"{name}={text!r} is {value}"
        if isinstance(value, int):
            assert -(2**63) <= value < 2**63, f"{name}={text!r} is {value}"
    except config.ConfigError as error:
        assert "\n" not in str(error)
    for call in (tcp.parse_ports, fault.split, place.parse_hosts, lambda wanted: tcp.choose_addresses(wanted, _AVAILABLE)):
        try:
            call(text)
        except ValueError as error:
            assert "\n" not in str(error)
    environ = {"PYMPX_PORT": text, "PYMPX_JOIN_TIMEOUT": text, "MASTER_PORT": text, "RANK": text, "WORLD_SIZE": text, "MASTER_ADDR": text}
    for join in (
        lambda: environment.number(environ, "PYMPX_PORT", 1, 65535),
        lambda: star.join_timeout(environ),
        lambda: environment.place(environ, "RANK", "WORLD_SIZE"),
        lambda: slurm.first_host(text),
        lambda: Env({**environ, "RANK": "0", "WORLD_SIZE": "2", "PYMPX_PORT": "4000"}),
        lambda: Env({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "here", "PYMPX_JOB_KEY_FILE": str(Path("/nonexistent") / text[:50])}),
    ):
        try:
            join()
        except BootstrapError as error:
            assert "\n" not in str(error)


sys.set_int_max_str_digits(4300)
run(one_input)
