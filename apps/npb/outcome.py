"""What a kernel needs besides its problem, and what it hands back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from apps.common.audit import Audit
from apps.common.report import Traffic
from apps.common.volume import Volume
from pympx import MPI


@dataclass(frozen=True)
class Job:
    """The communicator of a run and its books."""

    comm: MPI.Intracomm
    volume: Volume
    audit: Audit
    traffic: Traffic

    @property
    def rank(self) -> int:
        """This process's rank."""
        return self.comm.Get_rank()

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self.comm.Get_size()


@dataclass(frozen=True)
class Outcome:
    """Result of a kernel, the same on every rank."""

    #: the values equal the published ones within NPB's tolerance (the audit of the messages is judged apart)
    correct: bool
    iterations: int
    #: operations of the timed part, as NPB counts them
    operations: float
    #: lines for the person who runs it
    lines: list[str]
    #: values for the JSON record
    details: dict[str, Any] = field(default_factory=dict)
