"""One flipped bit in one received message, be it the lowest of a mantissa at the very start, makes verification fail."""

from __future__ import annotations

import pytest
from apps_harness import Launcher

FLIPPING = "tests/apps/flipping.py"
HEAT = ("--size", "24", "--iterations", "200")
PROGRAMS = {
    "heat": ("heat", HEAT, "VERIFIED", "FAILED"),
    "ep": ("npb", ("ep",), "verification SUCCESSFUL", "verification UNSUCCESSFUL"),
    "cg": ("npb", ("cg",), "verification SUCCESSFUL", "verification UNSUCCESSFUL"),
    "is": ("npb", ("is",), "verification SUCCESSFUL", "verification UNSUCCESSFUL"),
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_without_a_flip_it_verifies(launch: Launcher, program: str) -> None:
    app, arguments, verified, _ = PROGRAMS[program]
    run = launch(3, FLIPPING, app, "none", "0", "1", "0", *arguments)
    assert run.code == 0, run.out + run.err
    assert verified in run.out.splitlines()
    assert "flipped" not in run.out


@pytest.mark.parametrize(
    ("program", "call", "occurrence", "bit"),
    [
        ("heat", "Irecv", 1, 0),
        ("heat", "Irecv", 1, 51),
        ("heat", "Irecv", 395, 51),
        ("heat", "Allreduce", 1, 0),
        ("heat", "Contribution", 1, 40),
        ("ep", "Allreduce", 1, 0),
        ("ep", "Allreduce", 1, 51),
        ("ep", "Contribution", 1, 51),
        ("cg", "Allgatherv", 30, 0),
        ("cg", "Allgatherv", 30, 51),
        ("cg", "Allgatherv", 200, 62),
        ("cg", "Allreduce", 60, 0),
        ("cg", "Contribution", 60, 51),
        ("is", "Allreduce", 3, 0),
        ("is", "Contribution", 3, 5),
        ("is", "Alltoall", 3, 4),
        ("is", "Alltoallv", 3, 0),
        ("is", "Alltoallv", 3, 9),
        ("is", "Alltoallv", 3, 31),
    ],
)
def test_a_flip_fails(launch: Launcher, program: str, call: str, occurrence: int, bit: int) -> None:
    app, arguments, verified, failed = PROGRAMS[program]
    run = launch(3, FLIPPING, app, call, str(occurrence), "1", str(bit), *arguments)
    assert f"flipped bit {bit}" in run.out, run.out + run.err
    assert run.code == 1, run.out + run.err
    assert failed in run.out.splitlines()
    assert verified not in run.out.splitlines()


def test_the_closed_form_alone_notices_a_late_flip(launch: Launcher) -> None:
    run = launch(3, FLIPPING, "heat", "Irecv", "395", "1", "51", *HEAT)  # the middle rank receives twice an iteration: iteration 198 of 200
    assert run.record["iterate_error"] > 100 * run.record["iterate_allowed"]


def test_zeta_alone_forgives_an_early_flip(launch: Launcher) -> None:
    """Why the audit exists: power iteration works off the damage, and only the books know of it."""
    run = launch(3, FLIPPING, "npb", "Allgatherv", "30", "1", "51", "cg")
    assert run.record["error"] <= 1e-10
    assert run.record["findings"] == ["rank 1 holds other bits than rank 0 in data that all ranks share"]
