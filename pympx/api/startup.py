"""Ties the skin to what it calls in Python. Imported once, before anything communicates."""

from __future__ import annotations

from .. import runtime
from ..bindings import buffers as _buffers
from ..bindings import runtime as _runtime
from .constants import IN_PLACE
from .exotic import decode
from .op import run_reduction

_runtime.register(runtime.start, run_reduction, runtime.supply)
_buffers.register(decode, IN_PLACE)
