"""Draws the experiment's result. Imported only when a picture is asked for."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402  (the backend comes first)

_COLOURS = ("0.6", "tab:blue", "tab:orange")


def draw(path: Path, best: dict[str, dict[str, float]], unit: str, quantities: dict[str, tuple[str, str, bool]], device: str) -> None:
    """Write a PNG: for each quantity the time that each side takes, relative to the side `unit` (of a bandwidth, the time of a byte)."""
    figure, axes = plt.subplots(figsize=(8.0, 4.2), layout="constrained")
    height = 0.26
    for number, (side, colour) in enumerate(zip(best, _COLOURS, strict=True)):
        places, ratios = [], []
        for row, (key, (_, _, more)) in enumerate(quantities.items()):
            if key in best[side]:
                ratio = best[side][key] / best[unit][key]
                places.append(row + (number - 1) * height)
                ratios.append(1 / ratio if more else ratio)
        bars = axes.barh(places, ratios, height, color=colour, label=side)
        axes.bar_label(bars, fmt="%.2g", padding=2, fontsize=8)
    axes.set_yticks(range(len(quantities)), [what for what, _, _ in quantities.values()])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set(xlabel=f"time, relative to {unit}", title=f"The same transport with its data path in C++ and in pyverbs, on {device}")
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
