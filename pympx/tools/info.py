"""Say what this installation can do here: transports, protocols, collectives, settings (python -m pympx info)."""

from __future__ import annotations

import argparse
import difflib
import importlib
import json
import os
import platform
import secrets
import socket
import textwrap
from typing import Any

from .. import __version__, config
from ..bootstrap import BootstrapError, detect
from ..collectives import select
from ..plugins import manager
from ..plugins.api import PythonTransport, TransportPlugin

_DETAILS = """\
Opens each transport alone, in a world of one rank: no other rank, no launcher is spoken to. What two hosts can reach
of each other only a job shows: PYMPX_REPORT=1 makes rank 0 print that at the end of any program.

exit code     0 when a program started with this environment could start; 1 when it could not: the transport that
              PYMPX_TRANSPORT names is not usable, a PYMPX_* variable has a wrong value, the launcher that left its signs
              cannot be joined, or the engine cannot be loaded. 2 when the command line is wrong. Unknown PYMPX_* variables are
              flagged and change nothing.
"""

#: bits of mpx_iface_attr.caps (transport.h)
_CAPABILITIES = {
    0: "am_short", 1: "am_bcopy", 2: "am_zcopy", 3: "put_zcopy", 4: "get_zcopy", 5: "atomic64", 6: "rkey_ptr", 16: "connect_iface",
    17: "connect_ep", 18: "event_fd", 19: "inter_node", 20: "link_may_break", 21: "native_progress", 22: "need_memh",
}  # fmt: skip
_ATOMIC_DOMAINS = ("none", "cpu", "device")
_WIDTH = 110


def capabilities(bits: int) -> list[str]:
    """Return the names of the capability bits that are set; a bit without a name is ``bit N``."""
    return [_CAPABILITIES.get(bit, f"bit {bit}") for bit in range(bits.bit_length()) if bits >> bit & 1]


def platform_facts() -> dict[str, Any]:
    """Return versions and the machine; `cores` are those that this process may use."""
    return {
        "pympx": __version__,
        "python": platform.python_version(),
        "kernel": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "cores_online": os.cpu_count(),
    }


def bootstrap_facts() -> dict[str, Any]:
    """Return how a program started from here would join its job ("name"), or why it could not ("error")."""
    try:
        return {"name": detect(os.environ), "error": None}
    except BootstrapError as error:
        return {"name": None, "error": str(error)}


def transport_facts() -> list[dict[str, Any]]:
    """Return every transport: whether it is usable, or why not; what it advertises; its protocols. Opens those that can be opened.

    Bytes and seconds. Needs a process that communicates in no other way.
    """
    engine: Any = None
    problem = None
    try:
        engine = importlib.import_module("pympx.bindings.runtime")
        engine.create(0, [socket.gethostname()], secrets.token_bytes(32), config.get("PYMPX_EAGER_WINDOW"), 0.0, False, 30.0, False)
    except (ImportError, RuntimeError, config.ConfigError) as error:
        problem = f"the engine cannot be started: {error}"
    facts = []
    opened: list[TransportPlugin] = []
    for name, origin in manager.names().items():
        fact: dict[str, Any] = {"name": name, "origin": origin, "summary": None, "reason": problem, "settings": None, "attributes": None}
        fact |= {"protocols": None, "advice": ""}
        facts.append(fact)
        try:
            plugin = manager.load(name)
            fact["summary"], fact["advice"] = plugin.summary, plugin.advice
            if problem is None:
                _open(engine, plugin, fact, opened)
        except Exception as error:  # a stranger's plugin may raise anything; the others go on
            fact["reason"] = str(error) or type(error).__name__
        fact["usable"] = fact["reason"] is None
    if engine is not None and problem is None:
        engine.end("info is over")
    for plugin in opened:
        plugin.close()
    return facts


def _open(engine: Any, plugin: TransportPlugin, fact: dict[str, Any], opened: list[TransportPlugin]) -> None:
    fact["reason"] = plugin.probe()
    if fact["reason"] is not None:
        return
    if isinstance(plugin, PythonTransport):  # opening may speak to a launcher, and what it advertises says nothing that its class does not
        return
    plugin.prepare(secrets.token_bytes(32))
    opened.append(plugin)
    fact["settings"] = plugin.settings()
    number = engine.add_transport(plugin.table(), plugin.device(), json.dumps(plugin.config()))
    attributes = engine.attributes(number)
    attributes["caps"] = capabilities(attributes["caps"])
    attributes["atomic_domain"] = _ATOMIC_DOMAINS[attributes["atomic_domain"]]
    fact["attributes"] = attributes
    fact["protocols"] = engine.describe_protocols(number).split(", ")


def variable_facts() -> list[dict[str, Any]]:
    """Return all PYMPX_* variables: default, present text (None: not set), parsed value or what is wrong with it, help."""
    facts = []
    for variable in config.VARIABLES.values():
        value, error = None, None
        try:
            value = config.get(variable.name)
        except config.ConfigError as raised:
            error = str(raised)
        fact = {"name": variable.name, "default": variable.default, "set": os.environ.get(variable.name)}
        facts.append({**fact, "value": value, "error": error, "help": variable.help})
    return facts


def unknown_facts() -> list[dict[str, Any]]:
    """Return the PYMPX_* variables that nobody reads, each with the known name that it resembles (or None)."""
    facts = []
    for name in config.unknown():
        close = difflib.get_close_matches(name, config.VARIABLES, n=1, cutoff=0.7)
        facts.append({"name": name, "set": os.environ[name], "resembles": close[0] if close else None})
    return facts


def _problems(facts: dict[str, Any]) -> list[str]:
    """Return why a program with this environment could not start, a line each."""
    problems = [variable["error"] for variable in facts["variables"] if variable["error"]]
    boot = facts.get("bootstrap")
    if boot and boot["error"]:
        problems.append(boot["error"])
    wanted = os.environ.get("PYMPX_TRANSPORT") or "auto"
    transports = {transport["name"]: transport for transport in facts.get("transports", [])}
    if transports and wanted == "auto" and not any(transports[name]["usable"] for name in manager.AUTO if name in transports):
        problems.append("no transport between ranks is usable")
    elif transports and wanted != "auto" and wanted not in transports:
        problems.append(f"PYMPX_TRANSPORT={wanted}: there is no such transport")
    elif transports and wanted != "auto" and not transports[wanted]["usable"]:
        problems.append(f"PYMPX_TRANSPORT={wanted} is not usable: {transports[wanted]['reason']}")
    return problems


def size_text(nbytes: int) -> str:
    """Return a number of bytes for people: 240, 64K, 4M; what no message reaches is any number."""
    if nbytes >= 1 << 62:
        return "any number of"
    for unit, shift in (("G", 30), ("M", 20), ("K", 10)):
        if nbytes and nbytes % (1 << shift) == 0:
            return f"{nbytes >> shift}{unit}"
    return str(nbytes)


def _seconds_text(seconds: float) -> str:
    return f"{seconds * 1e6:g} us"


def _rate_text(bytes_per_second: float) -> str:
    return f"{bytes_per_second / 1e9:g} GB/s"


def _paragraph(title: str, text: str, indent: int = 4) -> str:
    head = f"{' ' * indent}{title:<14}"
    return textwrap.fill(
        text, _WIDTH, initial_indent=head, subsequent_indent=" " * len(head), break_on_hyphens=False, break_long_words=False
    )


def _transport_lines(fact: dict[str, Any]) -> list[str]:
    origin = "" if fact["origin"] == "pympx" else f" [{fact['origin']}]"
    lines = [f"  {fact['name']:<6}{'usable' if fact['usable'] else 'NOT usable'}{origin}: {fact['summary'] or fact['name']}"]
    if fact["reason"]:
        lines.append(_paragraph("why not", fact["reason"]))
    if fact["advice"]:
        lines.append(_paragraph("know that", fact["advice"]))
    a = fact["attributes"]
    if a is None:
        return lines
    if fact["settings"]:
        lines.append(_paragraph("settings", ", ".join(f"{key} {value}" for key, value in fact["settings"].items())))
    lines.append(_paragraph("can", " ".join(a["caps"])))
    kinds = [f"{kind} {size_text(a[f'max_am_{kind}'])}" for kind in ("short", "bcopy", "zcopy") if f"am_{kind}" in a["caps"]]
    limits = f"{', '.join(kinds)} bytes in one message"
    if "get_zcopy" in a["caps"]:
        limits += f"; get up to {size_text(a['max_zcopy'])} bytes"
    lines.append(_paragraph("limits", limits))
    costs = f"message {_seconds_text(a['latency_s'])} + {_rate_text(a['bandwidth_Bps'])}"
    if "get_zcopy" in a["caps"]:
        costs += f"; get {_seconds_text(a['get_overhead_s'])} + {_rate_text(a['get_bandwidth_Bps'])}"
    if a["reg_fixed_s"] or a["reg_per_byte_s"]:
        costs += f"; registration {_seconds_text(a['reg_fixed_s'])} + {a['reg_per_byte_s'] * 1e9:g} ns/byte"
    lines.append(_paragraph("costs", costs))
    lines.extend(_paragraph("protocols" if not index else "", text) for index, text in enumerate(fact["protocols"]))
    return lines


def _variable_lines(facts: dict[str, Any]) -> list[str]:
    width = max(len(variable["name"]) for variable in facts["variables"])
    lines = ["settings (environment; * set here)"]
    for variable in facts["variables"]:
        value = variable["default"] if variable["set"] is None else variable["set"]
        star = " " if variable["set"] is None else "*"
        default = f" (default: {variable['default'] or 'empty'})" if star == "*" else ""
        lines.append(f"{star} {variable['name']:<{width}}  {value or '-'}{default}")
        lines.append(textwrap.fill(variable["help"], _WIDTH, initial_indent=" " * (width + 4), subsequent_indent=" " * (width + 4)))
    for unknown in facts["unknown"]:
        hint = f": do you mean {unknown['resembles']}?" if unknown["resembles"] else ""
        lines.append(f"? {unknown['name']:<{width}}  {unknown['set']}   UNKNOWN, nothing reads it{hint}")
    return lines


def _text(facts: dict[str, Any], only_config: bool) -> str:
    """Return the facts for people."""
    blocks: list[list[str]] = []
    if "platform" in facts:
        p, boot = facts["platform"], facts["bootstrap"]
        blocks.append([
            f"pympx {p['pympx']}, Python {p['python']}, {p['kernel']} {p['machine']}, {p['cores']} of {p['cores_online']} cores",
            "started by: " + (boot["name"] or "a launcher that cannot be joined")
            + (" (no launcher)" if boot["name"] == "single" else ""),
        ])  # fmt: skip
        blocks.append(["transports", *(line for transport in facts["transports"] for line in _transport_lines(transport))])
        blocks.append(["collectives", *(f"  {line}" for line in facts["collectives"])])
    if only_config:
        blocks.append(_variable_lines(facts))
    else:
        given = [f"  {v['name']}={v['set']}" for v in facts["variables"] if v["set"] is not None]
        given += [f"  {u['name']}={u['set']}   UNKNOWN, nothing reads it" for u in facts["unknown"]]
        blocks.append([f"settings ({'none set' if not given else 'as set'}; all: python -m pympx info --config)", *given])
    if facts["problems"]:
        blocks.append([f"PROBLEM: {problem}" for problem in facts["problems"]])
    return "\n\n".join("\n".join(block) for block in blocks)


def collect(only_config: bool = False) -> dict[str, Any]:
    """Return all facts as plain data; with `only_config` just the settings."""
    facts: dict[str, Any] = {}
    if not only_config:
        facts["platform"] = platform_facts()
        facts["bootstrap"] = bootstrap_facts()
        facts["transports"] = transport_facts()
        facts["collectives"] = select.describe().splitlines()
    facts["variables"] = variable_facts()
    facts["unknown"] = unknown_facts()
    facts["problems"] = _problems(facts)
    return facts


def main(argv: list[str]) -> int:
    """Run the tool; return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m pympx info", allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Say what this installation can do here: transports, protocols, collectives, settings.", epilog=_DETAILS,
    )  # fmt: skip
    parser.add_argument("--config", action="store_true", help="only the PYMPX_* variables: default, present value, meaning")
    parser.add_argument("--json", action="store_true", help="as JSON, for machines (bytes and seconds)")
    options = parser.parse_args(argv)
    facts = collect(options.config)
    print(json.dumps(facts, indent=2) if options.json else _text(facts, options.config))
    return 1 if facts["problems"] else 0
