"""PMI-1's text protocol, shared by the client (pmi1.py) and the launcher's server.

A message is one line of ``key=value`` words parted by single blanks, the first of them ``cmd=NAME``. A value holds neither blank nor
newline, so binary data travels as URL-safe base64 without padding, which also spares the characters that some servers unescape
(backslash, semicolon).
"""

from __future__ import annotations

import base64
import binascii
import re

from .base import BootstrapError

#: Bytes that may wait for their newline. Real lines are far shorter; more means that the other side does not speak PMI-1.
LINE_LIMIT = 256 * 1024

_BASE64 = re.compile(r"[A-Za-z0-9_-]*", re.ASCII)
_NUMBER = re.compile(r"-?[0-9]{1,10}", re.ASCII)


class LineReader:
    """Cuts a byte stream into lines, without their newline."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._searched = 0

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def next_line(self) -> bytes | None:
        """Return the next whole line, or None until more is fed. Raises BootstrapError beyond LINE_LIMIT."""
        end = self._buffer.find(b"\n", self._searched)
        if end < 0:
            self._searched = len(self._buffer)
            if self._searched > LINE_LIMIT:
                raise BootstrapError(f"PMI: a line of more than {LINE_LIMIT} bytes arrived: the other side does not speak PMI-1")
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        self._searched = 0
        return line


def shown(line: bytes) -> str:
    """Return `line` shortened and escaped for a one-line error message."""
    text = ascii(line[:80].decode("latin-1"))
    return text if len(line) <= 80 else f"{text}... ({len(line)} bytes)"


def parse(line: bytes) -> dict[str, str]:
    """Return the words of one line. Raises BootstrapError when it is not PMI-1."""
    try:
        text = line.decode("ascii")
    except UnicodeDecodeError:
        raise BootstrapError(f"PMI: a line that is not ASCII arrived: {shown(line)}") from None
    words: dict[str, str] = {}
    for word in text.split(" "):
        if word:
            key, _, value = word.partition("=")
            words[key] = value
    if not words.get("cmd"):
        raise BootstrapError(f"PMI: a line without a command arrived: {shown(line)}")
    return words


def number(words: dict[str, str], key: str) -> int:
    """Return the integer `words[key]`. Raises BootstrapError when it is missing or not a plain decimal number."""
    value = words.get(key)
    if value is None or not _NUMBER.fullmatch(value):
        raise BootstrapError(f"PMI: {words.get('cmd')} came with {key}={value!r}, expected a number")
    return int(value)


def encode(blob: bytes) -> str:
    """Return `blob` as characters that every PMI-1 server stores unchanged."""
    return base64.urlsafe_b64encode(blob).rstrip(b"=").decode("ascii")


def decode(text: str) -> bytes:
    """Invert `encode`. Raises BootstrapError on anything that `encode` cannot have produced."""
    if not _BASE64.fullmatch(text):
        raise BootstrapError(f"PMI: a stored value is not base64: {shown(text.encode('latin-1', 'replace'))}")
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError):
        raise BootstrapError(f"PMI: a stored value is not base64: {shown(text.encode('ascii'))}") from None
