"""Buffers of objects that lack the buffer protocol, or cannot export their items through it."""

from __future__ import annotations

from typing import Any


def decode(obj: Any, writable: bool) -> tuple[int, int, str | None, Any]:
    """Return (address, bytes, item code or None, what keeps the memory alive). Raises TypeError or BufferError."""
    raise TypeError(f"message: expecting a buffer, got {type(obj).__name__}")
