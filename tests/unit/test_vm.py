"""The parts of ci/verbs that boot nothing: what a guest is told, what qemu is told, what is read back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

VERBS = Path(__file__).resolve().parents[2] / "ci" / "verbs"
sys.path.append(str(VERBS))

import machine  # noqa: E402
import pair  # noqa: E402

ODD = ["two words", "it's", "$HOME", "line\nbreak", "", "-n", "*", "é", "back\\slash"]


def guest(*command: str, **environment: str) -> machine.Guest:
    return machine.Guest(list(command), environment, Path("/a b"))


def read_back(text: str, folder: Path, names: str) -> list[str]:
    """What bash makes of a job.sh: the words of its variables."""
    (folder / "job.sh").write_text(text)
    script = f'set -euo pipefail; source "$1/job.sh"; printf "%s\\0" {names}'
    done = subprocess.run(["bash", "-c", script, "bash", folder], capture_output=True, text=True, check=True)
    return done.stdout.split("\0")[:-1]


def value_after(words: list[str], option: str) -> list[str]:
    return [words[number + 1] for number, word in enumerate(words) if word == option]


def test_a_command_arrives_as_it_is(tmp_path: Path) -> None:
    assert read_back(machine.job_text(guest(*ODD), Path("/m")), tmp_path, '"${command[@]}" "$directory" "$modules"') == [*ODD, "/a b", "/m"]


def test_an_environment_arrives_as_it_is(tmp_path: Path) -> None:
    wanted = {f"V{number}": value for number, value in enumerate(ODD)}
    text = machine.job_text(guest("true", **wanted), Path("/m"))
    expected = [*(f"{name}={value}" for name, value in wanted.items()), "VERBS_DEVICES=one"]
    assert read_back(text, tmp_path, '"${environment[@]}"') == expected


def test_what_belongs_to_this_machine_is_not_passed_on() -> None:
    kept = {"PATH": "/bin", "PYMPX_TRANSPORT": "verbs", "CI": "1", "HOME": "/h", "_X": "1", "DISPLAYED": "1"}
    assert machine.passed_on({**kept, "SSH_AUTH_SOCK": "s", "DISPLAY": ":0", "_": "x", "XDG_RUNTIME_DIR": "/run/user/0"}) == kept


def test_shares_inside_shares_are_one() -> None:
    folders = [Path("/a/b"), Path("/a"), Path("/ab"), Path("/a"), Path("/c/d")]
    assert machine.without_nested(folders) == [Path("/a"), Path("/ab"), Path("/c/d")]


def test_shares_are_told_to_both(tmp_path: Path) -> None:
    one = machine.Guest(["true"], {}, Path("/"), [Path("/x,y"), Path("/z z")])
    assert read_back(machine.job_text(one, Path("/m")), tmp_path, '"${shares[@]}"') == ["/x,y", "/z z"]
    folders = value_after(machine.qemu_words(one, Path("/i"), Path("/d"), Path("/job")), "-virtfs")
    assert [entry.split(",mount_tag=")[0] for entry in folders] == ["local,path=" + path for path in ["/", "/job", "/x,,y", "/z z"]]
    assert [entry for entry in folders if "readonly=on" in entry] == folders[:1]


def test_qemu_gets_the_machine_that_was_asked_for() -> None:
    words = machine.qemu_words(machine.Guest(["true"], {}, Path("/"), cpus=4, memory=1000), Path("/i"), Path("/d"), Path("/job"))
    assert (value_after(words, "-smp"), value_after(words, "-m"), value_after(words, "-kernel")) == (["4"], ["1000"], ["/i"])
    assert value_after(words, "-netdev") == []


def test_a_pair_has_both_ends_of_one_wire(tmp_path: Path) -> None:
    ends = pair.guests(guest("true", A="b"), tmp_path)
    assert [end.environment["HOST_INDEX"] for end in ends] == ["0", "1"]
    assert [end.environment["PEER_ADDRESS"] for end in ends] == [end.environment["HOST_ADDRESS"] for end in reversed(ends)]
    wires = [end.wire for end in ends]
    assert wires[0] is not None
    assert wires[1] is not None
    assert (wires[0].here, wires[0].there) == (wires[1].there, wires[1].here)
    assert [read_back(machine.job_text(end, Path("/m")), tmp_path, '"$devices" "$index"') for end in ends] == [["wire", "0"], ["wire", "1"]]
    cards = [value_after(machine.qemu_words(end, Path("/i"), Path("/d"), Path("/job")), "-device")[-1] for end in ends]
    assert len({card for card in cards if "virtio-net-pci" in card}) == 2


@pytest.mark.parametrize(("text", "status"), [("0\n", 0), ("255\n", 255), ("", None), (None, None)])
def test_a_status_is_read_or_there_is_none(tmp_path: Path, text: str | None, status: int | None) -> None:
    if text is not None:
        (tmp_path / "status").write_text(text)
    assert machine.read_status(tmp_path) == status


@pytest.mark.parametrize("words", [[], ["--"], ["--share", "/no/such/folder", "--", "true"], ["--kernel", "2.2", "--", "true"]])
def test_a_wrong_command_line_starts_nothing(words: list[str]) -> None:
    for command in ("vm", "pair"):
        done = subprocess.run([VERBS / command, *words], capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert f"ci/verbs/{command}: error:" in done.stderr
