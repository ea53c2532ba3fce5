"""IS: ranking of integer keys.

Keys go to the rank that owns their bucket (Alltoallv), owners count; repeated ten times with two keys changed each time.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from apps.common.blocks import block
from apps.npb.answers import IS, IsProblem
from apps.npb.outcome import Job, Outcome
from apps.npb.random46 import Stream
from pympx import MPI

PROBLEMS = IS
_SEED = 314159265
_PIECE = 1 << 18
_ITERATIONS = 10

Keys = NDArray[np.int32]
Integers = NDArray[np.int64]


def _make_keys(problem: IsProblem, start: int, stop: int) -> Keys:
    """Return keys [start, stop): a quarter of the largest key times the sum of four random numbers."""
    quarter = (1 << problem.log_max_key) // 4
    stream = Stream(_SEED, 4 * _PIECE)
    keys = np.empty(stop - start, dtype=np.int32)
    for first in range(start, stop, _PIECE):
        count = min(_PIECE, stop - first)
        four = stream.uniform(4 * first, 4 * count).reshape(count, 4)
        keys[first - start : first - start + count] = quarter * (((four[:, 0] + four[:, 1]) + four[:, 2]) + four[:, 3])
    return keys


class _Ranker:
    """One rank's block of the keys, and after each iteration the keys and the counts of the buckets that it owns."""

    def __init__(self, job: Job, problem: IsProblem) -> None:
        self._job = job
        self._problem = problem
        self._start, self._stop = block(1 << problem.log_keys, job.size, job.rank)
        self._keys = _make_keys(problem, self._start, self._stop)
        #: keys received, all in [low, low + counts.size)
        self.received: Keys = np.empty(0, dtype=np.int32)
        self.low = 0
        self.counts: Integers = np.empty(0, dtype=np.int64)

    def _set(self, index: int, key: int) -> None:
        if self._start <= index < self._stop:
            self._keys[index - self._start] = key

    def rank_keys(self, iteration: int) -> int:
        """Change two keys, rank all keys; return how many of the test keys whose bucket is here have their published rank."""
        problem, size, rank = self._problem, self._job.size, self._job.rank
        self._set(iteration, iteration)
        self._set(iteration + _ITERATIONS, (1 << problem.log_max_key) - iteration)
        shift = problem.log_max_key - problem.log_buckets
        buckets = self._keys >> shift
        bucket_counts = np.bincount(buckets, minlength=1 << problem.log_buckets)
        tests = np.zeros(len(problem.test_indices), dtype=np.int64)
        for i, index in enumerate(problem.test_indices):
            if self._start <= index < self._stop:
                tests[i] = self._keys[index - self._start]
        totals = self._job.audit.allreduce_sum(np.concatenate((bucket_counts, tests)))
        bucket_totals, tests = totals[: 1 << problem.log_buckets], totals[1 << problem.log_buckets :]

        # consecutive buckets go to ranks so that each gets about the same number of keys
        before = np.cumsum(bucket_totals) - bucket_totals
        owner = np.maximum.accumulate(np.clip(before * size >> problem.log_keys, 0, size - 1))  # in order even if a total arrived damaged
        ends = np.searchsorted(owner, np.arange(size + 1))
        self.low, high = int(ends[rank]) << shift, int(ends[rank + 1]) << shift
        sent_before = np.concatenate(([0], np.cumsum(bucket_counts)))[ends]
        self._exchange(owner.astype(np.uint16)[buckets], np.diff(sent_before))

        inside = (self.received >= self.low) & (self.received < high)
        own = self.received
        if not inside.all():
            self._job.audit.fault(f"iteration {iteration}: received {np.count_nonzero(~inside)} keys of other ranks' buckets")
            own = own[inside]
        self.counts = np.bincount(own - self.low, minlength=high - self.low)
        smaller_elsewhere = int(before[ends[rank]]) if ends[rank] < before.size else 1 << problem.log_keys
        passed = 0
        for i, key in enumerate(tests.tolist()):
            if self.low <= key < high:
                passed += smaller_elsewhere + int(self.counts[: key - self.low].sum()) == problem.expected_rank(i, iteration)
        return passed

    def _exchange(self, destination: NDArray[np.uint16], send_counts: Integers) -> None:
        """Send every key to its `destination`; `send_counts` says how many go to each rank."""
        job = self._job
        outgoing = self._keys[np.argsort(destination, kind="stable")]  # a radix sort for 16-bit integers
        # a damaged count would break the exchange itself, so each travels three times and the majority wins
        announced = np.stack((send_counts,) * 3, axis=1)
        expected = np.empty_like(announced)
        job.comm.Alltoall(announced, expected)
        job.volume.alltoallv([announced[0].nbytes] * job.size)
        receive_counts = np.median(expected, axis=1).astype(np.int64)
        if not np.array_equal(expected, np.stack((receive_counts,) * 3, axis=1)):
            job.audit.fault("received a damaged count of keys")
        send_places = np.cumsum(send_counts) - send_counts
        receive_places = np.cumsum(receive_counts) - receive_counts
        self.received = np.empty(int(receive_counts.sum()), dtype=np.int32)
        job.comm.Alltoallv(
            [outgoing, send_counts.tolist(), send_places.tolist(), MPI.INT32_T],
            [self.received, receive_counts.tolist(), receive_places.tolist(), MPI.INT32_T],
        )
        job.volume.alltoallv((send_counts * outgoing.itemsize).tolist())
        for peer in range(job.size):
            job.audit.sent(peer, outgoing[send_places[peer] : send_places[peer] + send_counts[peer]])
            job.audit.received(peer, self.received[receive_places[peer] : receive_places[peer] + receive_counts[peer]])

    def fully_sorted(self) -> bool:
        """Collective: tell whether counted ranks are those of sorted keys, blocks of keys follow each other, and no key is missing."""
        job = self._job
        keys = np.sort(self.received).astype(np.int64)
        good = True
        if keys.size:
            good = bool(self.low <= keys[0] <= keys[-1] < self.low + self.counts.size)
            good = good and np.array_equal((np.cumsum(self.counts) - self.counts)[keys - self.low], np.searchsorted(keys, keys))
        edges = np.array([keys.size, keys[0] if keys.size else 0, keys[-1] if keys.size else 0, good], dtype=np.int64)
        everyone = np.empty((job.size, edges.size), dtype=np.int64)
        job.comm.Allgather(edges, everyone)
        job.audit.replicated(everyone)
        occupied = everyone[everyone[:, 0] > 0]
        return (
            bool(everyone[:, 3].all())
            and int(everyone[:, 0].sum()) == 1 << self._problem.log_keys
            and bool(np.all(occupied[1:, 1] >= occupied[:-1, 2]))
        )


def run(job: Job, problem: IsProblem) -> Outcome:
    """Run IS on all ranks."""
    ranker = _Ranker(job, problem)
    ranker.rank_keys(1)  # NPB's untimed iteration
    job.volume.sent.clear()  # what the set-up moved is outside the counters' window
    job.traffic.start()
    passed = sum(ranker.rank_keys(iteration) for iteration in range(1, _ITERATIONS + 1))
    job.traffic.stop()
    is_sorted = ranker.fully_sorted()
    all_passed = int(job.audit.allreduce_sum(np.array([passed], dtype=np.int64))[0])
    expected = _ITERATIONS * len(problem.test_indices)
    return Outcome(
        correct=is_sorted and all_passed == expected,
        iterations=_ITERATIONS,
        operations=float(_ITERATIONS << problem.log_keys),
        lines=[f"partial verifications {all_passed} of {expected}", f"all keys in ascending order: {'yes' if is_sorted else 'no'}"],
        details={"partial_verifications": all_passed, "sorted": is_sorted},
    )
