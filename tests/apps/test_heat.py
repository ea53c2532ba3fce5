"""heat verifies on 1 to 4 ranks, uneven blocks included, and its payload goes where it should."""

from __future__ import annotations

from pathlib import Path

import pytest
from apps_harness import Launcher, check_traffic, check_verified

HEAT = "apps/heat/heat.py"


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_verifies(launch: Launcher, ranks: int, transport: str) -> None:
    run = launch(ranks, HEAT, "--size", "31", transport=transport)
    check_verified(run, ranks)
    assert run.out.splitlines()[4] == "VERIFIED"
    assert run.record["residual"] <= 1e-8


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_payload(launch: Launcher, ranks: int, transport: str) -> None:
    check_traffic(launch(ranks, HEAT, "--size", "31", transport=transport), ranks, transport)


def test_iterates_do_not_depend_on_ranks(launch: Launcher) -> None:
    runs = [launch(ranks, HEAT, "--size", "31") for ranks in (1, 2, 3, 4)]
    assert len({run.record["iterations"] for run in runs}) == 1
    assert len({run.record["iterate_error"] for run in runs}) == 1


def test_expected_payload_is_the_rims(launch: Launcher) -> None:
    run = launch(4, HEAT, "--size", "31")  # 2 x 2 blocks: two lines of 31 points cut the plate, each crossed both ways
    assert run.record["payload_bytes"]["point_to_point"] == run.record["iterations"] * 2 * 2 * 31 * 8


def test_picture(launch: Launcher, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    image = tmp_path / "plate.png"
    check_verified(launch(3, HEAT, "--size", "20", "--png", str(image)), 3)
    assert image.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_more_ranks_than_rows_is_one_line(launch: Launcher) -> None:
    run = launch(5, HEAT, "--size", "4")
    assert run.code == 2
    assert "heat: 4 x 4 points cannot be cut into 5 x 1 blocks; use --size 5 or more" in run.err
