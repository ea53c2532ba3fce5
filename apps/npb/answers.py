"""Problem sizes and published answers of NPB 3.3 for EP, CG and IS, classes S, W and A.

Values are those of the NPB sources. EP's count of accepted pairs and CG's count of non-zeros are not published there: they are
exact integers that follow from the definition, kept here because they make verification sharper.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EpProblem:
    """2^`log_pairs` pairs; sums of the Gaussian deviates, relative tolerance 1e-8; accepted pairs, exact."""

    log_pairs: int
    sx: float
    sy: float
    accepted: int


@dataclass(frozen=True)
class CgProblem:
    """Order `n`, `nonzer` entries per generating vector, `iterations` of inverse power iteration.

    zeta has a relative tolerance of 1e-10; the count of non-zeros is exact.
    """

    n: int
    nonzer: int
    iterations: int
    shift: float
    zeta: float
    nonzeros: int


@dataclass(frozen=True)
class IsProblem:
    """2^`log_keys` keys below 2^`log_max_key` in 2^`log_buckets` buckets; the ranks of five keys at each of ten iterations, exact.

    At iteration t the expected rank of test key i is `ranks[i]` + t + `rise` for i < `rising`, else `ranks[i]` - t - `fall`.
    """

    log_keys: int
    log_max_key: int
    log_buckets: int
    test_indices: tuple[int, int, int, int, int]
    ranks: tuple[int, int, int, int, int]
    rising: int
    rise: int
    fall: int

    def expected_rank(self, i: int, iteration: int) -> int:
        """Return the published rank of test key `i` (0..4) at `iteration` (1..10)."""
        return self.ranks[i] + iteration + self.rise if i < self.rising else self.ranks[i] - iteration - self.fall


EP = {
    "S": EpProblem(24, -3.247834652034740e3, -6.958407078382297e3, 13176389),
    "W": EpProblem(25, -2.863319731645753e3, -6.320053679109499e3, 26354769),
    "A": EpProblem(28, -4.295875165629892e3, -1.580732573678431e4, 210832767),
}

CG = {
    "S": CgProblem(1400, 7, 15, 10.0, 8.5971775078648, 78148),
    "W": CgProblem(7000, 8, 15, 12.0, 10.362595087124, 508402),
    "A": CgProblem(14000, 11, 15, 20.0, 17.130235054029, 1853104),
}

IS = {
    "S": IsProblem(16, 11, 9, (48427, 17148, 23627, 62548, 4431), (0, 18, 346, 64917, 65463), 3, 0, 0),
    "W": IsProblem(20, 16, 10, (357773, 934767, 875723, 898999, 404505), (1249, 11698, 1039987, 1043896, 1048018), 2, -2, 0),
    "A": IsProblem(23, 19, 10, (2112377, 662041, 5336171, 3642833, 4250760), (104, 17523, 123928, 8288932, 8388264), 3, -1, -1),
}
