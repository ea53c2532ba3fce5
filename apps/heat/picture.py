"""Draws the plate. Imported only by the rank that draws, and only when a picture is asked for."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray

from apps.heat.analytic import EDGE_MODES, edge, steady

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402  (the backend comes first)


def draw(path: Path, plate: NDArray[np.float64], title: str) -> None:
    """Write a PNG of the interior temperatures `plate` (row 0 is y = h) with contours computed (white) and analytic (black, dashed)."""
    n = plate.shape[0]
    h = 1.0 / (n + 1)
    lines = np.linspace(0.0, 1.0, n + 2)
    field = np.zeros((n + 2, n + 2))
    field[1:-1, 1:-1] = plate
    field[-1] = edge(lines)
    hottest = float(field.max())
    levels = hottest * np.array([0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
    figure, axes = plt.subplots(figsize=(7.2, 6.2), layout="constrained")
    image = axes.imshow(field, origin="lower", extent=(-h / 2, 1 + h / 2, -h / 2, 1 + h / 2), cmap="inferno", vmin=0.0, vmax=hottest)
    axes.contour(lines, lines, field, levels=levels, colors="white", linewidths=2.2, alpha=0.8)
    axes.contour(lines, lines, steady(lines, lines), levels=levels, colors="black", linewidths=0.9, linestyles="dashed")
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="x", ylabel="y", title=title)
    modes = " + ".join(f"{amplitude:g} sin({k}πx)" for k, amplitude in EDGE_MODES.items())
    axes.text(0.5, 0.02, f"edge y = 1: {modes}; others 0\nwhite: computed, dashed: analytic", ha="center", color="white", fontsize=8)
    figure.colorbar(image, label="temperature")
    figure.savefig(path, dpi=120)
    plt.close(figure)
