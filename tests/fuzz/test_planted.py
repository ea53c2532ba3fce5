"""The fuzz targets find faults: each is given a copy of what it tests with one check taken out, and must report it within a minute."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from test_fuzz import BUILD, HERE, LIMITS, command, environment

ROOT = HERE.parents[1]
LIMIT_S = 60

#: target, source, the check, what stands in its place, what is said
FAULTS = [
    ("tcp_frames", "transports/tcp/mem.cc", "|| len > mem.len - (addr - base)", "", "more was served|served that nobody|AddressSanitizer"),
    (
        "tcp_acceptor", "transports/tcp/handshake.cc",
        "if (!same(proof.mac, key.prove(Role::kConnector, hello, iface->address, nonce))) return iface->bury(this);", "",
        "accepted without a proof",
    ),
    (
        "engine_messages", "pympx/engine/receive.cc", "|| length > r->expected - r->moved", "",
        "AddressSanitizer: heap-buffer-overflow|fuzz target: ",
    ),
]  # fmt: skip


def build(target: str, source: str, check: str, instead: str, folder: Path) -> Path:
    """Compile `source` without `check` and link the target with it."""
    text = (ROOT / source).read_text()
    assert text.count(check) == 1, f"{source} has no such check any more"
    mutant = folder / Path(source).name
    mutant.write_text(text.replace(check, instead))
    library = {"pympx": "engine", "transports": Path(source).parent.name}[Path(source).parts[0]]
    entries = json.loads((BUILD / "compile_commands.json").read_text())
    (entry,) = (e for e in entries if Path(e["file"]).name == mutant.name and f"lib{library}_for_fuzzing" in e["output"])
    compiled = folder / "mutant.o"
    words = shlex.split(entry["command"])
    words[words.index("-o") + 1] = str(compiled)
    words[words.index("-c") + 1] = str(mutant)
    subprocess.run([*words, f"-I{(ROOT / source).parent}"], cwd=entry["directory"], check=True, timeout=120)
    listed = subprocess.run(
        ["ninja", "-C", str(BUILD), "-t", "commands", f"tests/fuzz/fuzz_{target}"], capture_output=True, text=True, check=True, timeout=30
    )
    words = shlex.split(listed.stdout.splitlines()[-1])
    program = folder / "mutant"
    at = words.index("-o")
    words[at + 1 : at + 2] = [str(program), str(compiled)]  # before the library, whose own copy is then not taken
    subprocess.run(words, cwd=BUILD, check=True, timeout=60)
    return program


def found(words: list[str], target: str, folder: Path) -> str:
    """Return what a run says that must fail."""
    new = folder / "new"
    new.mkdir()
    options = [*LIMITS, f"-max_total_time={LIMIT_S}", "-seed=1", "-len_control=0", f"-artifact_prefix={folder}/"]
    done = subprocess.run(
        [*words, *options, str(new), str(HERE / "corpus" / target)], env=environment(), cwd=folder, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=LIMIT_S + 60, check=False,
    )  # fmt: skip
    said = done.stdout.decode(errors="replace")
    assert done.returncode != 0, f"the fault was not found\n{said[-2000:]}"
    return said


@pytest.mark.parametrize(("target", "source", "check", "instead", "words"), FAULTS, ids=[f[0] for f in FAULTS])
def test_a_missing_check_is_found(target: str, source: str, check: str, instead: str, words: str, tmp_path: Path) -> None:
    said = found([str(build(target, source, check, instead, tmp_path))], target, tmp_path)
    assert any(word in said for word in words.split("|")), said[-3000:]


@pytest.mark.parametrize(
    ("target", "fault", "words"),
    [
        ("star_root", "import hmac; hmac.compare_digest = lambda a, b: True", "id(owner) in genuine"),
        ("star_rank", "import hmac; hmac.compare_digest = lambda a, b: True", "it believes who did not prove himself"),
        ("pmi1_server", "import pympx.launcher.pmi1_server as s; s.BootstrapError = KeyError", "BootstrapError"),
    ],
)
def test_a_missing_check_in_python_is_found(target: str, fault: str, words: str, tmp_path: Path) -> None:
    script = command(target)[-1]
    start = f"import runpy, sys; sys.path.insert(0, {str(HERE)!r}); {fault}; sys.argv[0] = {script!r}; runpy.run_path({script!r})"
    assert words in found([sys.executable, "-P", "-c", start], target, tmp_path)
