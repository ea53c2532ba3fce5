"""What ``python -m pympx info`` says, by running it: text, JSON, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def _info(tmp_path: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the tool without any launcher's signs, from a folder where no source tree shadows the installed package."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYMPX_", "PMI_", "PMIX_"))}
    command = [sys.executable, "-m", "pympx", "info", *arguments]
    return subprocess.run(command, env={**environment, **variables}, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)


def _json(result: subprocess.CompletedProcess[str]) -> Any:
    assert result.stderr == ""
    return json.loads(result.stdout)


def test_all_transports_are_usable_and_described(tmp_path: Path) -> None:
    result = _info(tmp_path, "--json")
    assert result.returncode == 0, result.stdout
    facts = _json(result)
    transports = {fact["name"]: fact for fact in facts["transports"]}
    assert set(transports) >= {"self", "shm", "tcp"}
    for name in ("self", "shm", "tcp"):
        fact = transports[name]
        assert fact["usable"], fact["reason"]
        assert {"am_short", "am_bcopy", "event_fd"} <= set(fact["attributes"]["caps"])
        assert 0 < fact["attributes"]["max_am_short"] <= fact["attributes"]["max_am_bcopy"]
        assert 0 < fact["attributes"]["latency_s"] < 1
        assert fact["attributes"]["bandwidth_Bps"] > 1e8
    assert "inter_node" in transports["tcp"]["attributes"]["caps"]
    assert "inter_node" not in transports["shm"]["attributes"]["caps"]
    assert facts["bootstrap"] == {"name": "single", "error": None}
    assert any(line.startswith("allreduce") for line in facts["collectives"])
    assert facts["problems"] == []


def test_protocol_ranges_leave_no_size_out(tmp_path: Path) -> None:
    opened = [fact for fact in _json(_info(tmp_path, "--json"))["transports"] if fact["protocols"]]
    assert {fact["name"] for fact in opened} >= {"self", "shm", "tcp"}
    for fact in opened:
        ranges = [text.split(" ", 1)[0].split("..") for text in fact["protocols"]]
        assert ranges[0][0] == "0"
        assert ranges[-1][1] == ""
        for before, after in zip(ranges, ranges[1:], strict=False):
            assert int(after[0]) == int(before[1]) + 1


def test_text_names_what_json_has(tmp_path: Path) -> None:
    facts = _json(_info(tmp_path, "--json"))
    text = _info(tmp_path).stdout
    for fact in facts["transports"]:
        assert f"{fact['name']:<6}{'usable' if fact['usable'] else 'NOT usable'}" in text
        assert all(protocol in text for protocol in fact["protocols"] or [])
        assert ("know that" in text) or not fact["advice"]
    assert f"Python {facts['platform']['python']}" in text
    assert "started by: single" in text


def test_a_transport_that_cannot_serve_says_why_and_fails_only_if_named(tmp_path: Path) -> None:
    wrong = {"PYMPX_TCP_INTERFACES": "nosuchinterface0"}
    facts = _json(_info(tmp_path, "--json", **wrong))
    tcp = next(fact for fact in facts["transports"] if fact["name"] == "tcp")
    assert not tcp["usable"]
    assert "nosuchinterface0" in tcp["reason"]
    assert facts["problems"] == []
    named = _info(tmp_path, PYMPX_TRANSPORT="tcp", **wrong)
    assert named.returncode == 1
    assert "PROBLEM: PYMPX_TRANSPORT=tcp is not usable: " in named.stdout
    assert _info(tmp_path, PYMPX_TRANSPORT="pigeon").returncode == 1


def test_third_party_transports_are_found_and_their_faults_reported(tmp_path: Path) -> None:
    folder = tmp_path / "lame-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: lame\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[pympx.transports]\nlame = lame_plugin\n")
    (tmp_path / "lame_plugin.py").write_text("raise OSError('no wings')\n")
    result = _info(tmp_path, "--json", PYTHONPATH=str(tmp_path))
    lame = next(fact for fact in _json(result)["transports"] if fact["name"] == "lame")
    assert (lame["usable"], lame["origin"]) == (False, "lame")
    assert "no wings" in lame["reason"]
    assert result.returncode == 0


def test_a_launcher_that_cannot_be_joined_is_a_problem(tmp_path: Path) -> None:
    result = _info(tmp_path, RANK="0", WORLD_SIZE="2")
    assert result.returncode == 1
    assert "PROBLEM: pympx: RANK=0 and WORLD_SIZE=2 are set without MASTER_ADDR" in result.stdout
    assert result.stderr == ""


def test_config_shows_default_value_and_help_of_every_variable(tmp_path: Path) -> None:
    from pympx import config

    result = _info(tmp_path, "--config", "--json", PYMPX_TIMEOUT="2.5")
    assert result.returncode == 0
    facts = _json(result)
    variables = {fact["name"]: fact for fact in facts["variables"]}
    assert set(variables) == set(config.VARIABLES)
    assert variables["PYMPX_TIMEOUT"]["set"] == "2.5"
    assert variables["PYMPX_TIMEOUT"]["value"] == 2.5
    assert variables["PYMPX_TRANSPORT"]["set"] is None
    assert variables["PYMPX_TRANSPORT"]["value"] == "auto"
    assert variables["PYMPX_EAGER_WINDOW"]["value"] == 4 << 20
    assert all(fact["help"] for fact in variables.values())
    assert "transports" not in facts
    text = _info(tmp_path, "--config", PYMPX_TIMEOUT="2.5").stdout
    assert "* PYMPX_TIMEOUT" in text
    assert all(name in text for name in config.VARIABLES)


@pytest.mark.parametrize("arguments", [(), ("--config",)])
def test_unknown_variables_are_flagged_and_wrong_values_fail(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    typo = _info(tmp_path, *arguments, PYMPX_TRANSPROT="tcp")
    assert typo.returncode == 0
    assert "UNKNOWN" in typo.stdout
    assert "PYMPX_TRANSPROT" in typo.stdout
    wrong = _info(tmp_path, *arguments, PYMPX_TIMEOUT="soon")
    assert wrong.returncode == 1
    assert "PROBLEM: PYMPX_TIMEOUT='soon'" in wrong.stdout


def test_a_typing_error_is_told_what_it_resembles_and_internal_names_are_none(tmp_path: Path) -> None:
    facts = _json(_info(tmp_path, "--json", "--config", PYMPX_TRANSPROT="tcp", PYMPX_JOB_KEY_FD="7", PYMPX_TEST_SEED="1"))
    assert facts["unknown"] == [{"name": "PYMPX_TRANSPROT", "set": "tcp", "resembles": "PYMPX_TRANSPORT"}]


def test_help_and_wrong_command_lines(tmp_path: Path) -> None:
    helped = _info(tmp_path, "--help")
    assert helped.returncode == 0
    assert "exit code" in helped.stdout
    assert _info(tmp_path, "--jsno").returncode == 2


def test_fault_is_there_when_asked_for(tmp_path: Path) -> None:
    def fault(**environment: str) -> dict[str, Any]:
        return next(fact for fact in _json(_info(tmp_path, "--json", **environment))["transports"] if fact["name"] == "fault")

    assert fault()["reason"] == "PYMPX_FAULT is not set: say over=NAME, the transport to wrap, and what it suffers"
    assert fault(PYMPX_FAULT="over=tcp,hold=0.5")["attributes"]["max_am_short"] > 0
    assert "'hold=2': expecting a chance from 0 to 1" in fault(PYMPX_FAULT="over=tcp,hold=2")["reason"]
    assert "over=NAME once" in fault(PYMPX_FAULT="hold=1")["reason"]
    assert "there is no transport nosuch" in fault(PYMPX_FAULT="over=nosuch")["reason"]
