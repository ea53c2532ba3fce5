"""Closed forms: the plate's steady temperature, and what Jacobi's iteration must hold after any number of steps.

The plate is the unit square. Three edges are kept at 0, the edge y = 1 at f(x) = sum over k of a_k sin(k pi x). The steady
temperature is
    T(x, y) = sum_k a_k sin(k pi x) sinh(k pi y) / sinh(k pi).
On the grid x_i = i h, y_j = j h, h = 1 / (n + 1), the five-point equations separate in the same sines, so their solution is known:
    u(i, j) = sum_k a_k sin(k pi x_i) g_k(j),   g_k(j) = sinh(m_k j) / sinh(m_k (n + 1)),   cosh m_k = 2 - cos(k pi h).
Jacobi's iteration multiplies the error's component sin(k pi x) sin(l pi y) by (cos k pi h + cos l pi h) / 2 at each step. Started
from zero, the error after s steps is therefore
    sum_k a_k sin(k pi x_i) e_k(j),   e_k(j) = -sum_l w_kl sin(l pi y_j) ((cos k pi h + cos l pi h) / 2)^s,
    w_kl = 2 h sin(l pi n h) / (4 - 2 cos k pi h - 2 cos l pi h).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: amplitude of each sine mode k of the hot edge. Not symmetric in x, so that a mirrored plate does not verify.
EDGE_MODES = {1: 1.0, 2: 0.5, 3: 0.25}


def edge(x: Array) -> Array:
    """Return the temperature of the edge y = 1 at `x`."""
    total = np.zeros_like(x)
    for k, amplitude in EDGE_MODES.items():
        total += amplitude * np.sin(k * math.pi * x)
    return total


def _sinh_ratio(a: NDArray[np.floating], b: float) -> Array:
    """Return sinh(a) / sinh(b) for 0 <= a <= b, without overflow."""
    ratio: Array = np.exp(a - b) * -np.expm1(-2.0 * a) / -math.expm1(-2.0 * b)
    return ratio


def steady(x: NDArray[np.floating], y: NDArray[np.floating]) -> Array:
    """Return the steady temperature T at the points `y` (rows) x `x` (columns)."""
    total = np.zeros((y.size, x.size))
    for k, amplitude in EDGE_MODES.items():
        total += amplitude * np.outer(_sinh_ratio(k * math.pi * y, k * math.pi), np.sin(k * math.pi * x))
    return total


def grid_steady(n: int, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Array:
    """Return the solution of the five-point equations at grid points `rows` x `columns`, numbered 1..n from the cold corner."""
    h = 1.0 / (n + 1)
    total = np.zeros((rows.size, columns.size))
    for k, amplitude in EDGE_MODES.items():
        mu = 2.0 * math.asinh(math.sin(0.5 * k * math.pi * h))  # acosh(2 - cos), without its cancellation
        total += amplitude * np.outer(_sinh_ratio(mu * rows, mu * (n + 1)), np.sin(k * math.pi * h * columns))
    return total


def iteration_error(n: int, steps: int, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Array:
    """Return (iterate - grid_steady) after `steps` Jacobi steps from zero, at grid points `rows` x `columns`, numbered 1..n."""
    h = 1.0 / (n + 1)
    modes = np.arange(1, n + 1)
    cos_l = np.cos(math.pi * h * modes)
    last_row = np.where(modes % 2 == 1, 1.0, -1.0) * np.sin(math.pi * h * modes)  # sin(l pi n h)
    sines = np.sin(math.pi * h * np.outer(rows, modes))
    total = np.zeros((rows.size, columns.size))
    for k, amplitude in EDGE_MODES.items():
        cos_k = math.cos(k * math.pi * h)
        weights = 2.0 * h * last_row / (4.0 - 2.0 * cos_k - 2.0 * cos_l)
        decay = (0.5 * (cos_k + cos_l)) ** steps
        total -= amplitude * np.outer(sines @ (weights * decay), np.sin(k * math.pi * h * columns))
    return total


def discretisation_bound(n: int) -> float:
    """Return a proven bound on |grid_steady - steady|.

    Per mode the difference d(j) solves -d'' + c d = t on the grid lines, c = (2 - 2 cos k pi h) / h^2, where the truncation
    error t is at most h^2 / 12 * (k pi)^4 from each direction; by the maximum principle |d| <= max |t| / c.
    """
    h = 1.0 / (n + 1)
    return sum(
        abs(amplitude) * h**4 * (k * math.pi) ** 4 / (6.0 * (2.0 - 2.0 * math.cos(k * math.pi * h))) for k, amplitude in EDGE_MODES.items()
    )


def rounding_bound(n: int, steps: int) -> float:
    """Return a bound on |computed iterate - exact iterate| from rounding.

    Three additions and an exact factor 1/4 err by at most 2 eps max|f| per step; the steps' errors add up to at most
    min(steps, |(I - J)^-1|) times that, and |(I - J)^-1| <= (n + 1)^2 / 2 in the maximum norm. The closed form's own rounding
    (n terms) is taken as at most 8 n eps max|f|.
    """
    eps = float(np.finfo(np.float64).eps)
    hottest = sum(abs(amplitude) for amplitude in EDGE_MODES.values())
    return (2.0 * min(float(steps), 0.5 * (n + 1) ** 2) + 8.0 * n) * eps * hottest
