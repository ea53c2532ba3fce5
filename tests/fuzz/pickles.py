"""The header of a message that is a pickled object: what its numbers say is checked against the message before anything is believed.

Unpickling itself runs what a peer of the job wrote, which is trusted; it is left out here.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Iterable
from typing import Any

from fuzzing import Input, run

from pympx.bindings import pickling

_MAGIC = 0x786D707962666F00


def _load(view: Any, buffers: Iterable[Any] = ()) -> tuple[bytes, list[bytes]]:
    return bytes(view), [bytes(buffer) for buffer in buffers]


def one_input(data: Input) -> None:
    kind = data.number() % 4
    if kind == 0:
        message = data.take(4096)
    else:
        count = data.number() % 6
        sizes = [data.number(2) % 300 for _ in range(count)]
        body = b"p" * (data.number() % 90)
        words = [_MAGIC, count, len(body), *sizes]
        for _ in range(data.number() % 3):
            words[data.number() % len(words)] = data.number(8) if data.number() % 2 else (1 << 64) - 1 - data.number()
        message = struct.pack(f"<{len(words)}Q", *words) + body
        for size in sizes:
            message += bytes(-len(message) % 64) + b"b" * size
        if kind == 1:
            message = data.spoil(message)
        if kind == 2:
            message = message[: data.number(2) % (len(message) + 1)]
    try:
        loaded = pickling.loads_object(bytearray(message))
    except pickle.UnpicklingError:
        return
    if loaded is None:
        assert not message
        return
    body, buffers = loaded
    assert len(body) + sum(map(len, buffers)) <= len(message), "more than the message holds"
    if kind == 3 and words == [_MAGIC, count, words[2], *sizes]:
        assert [len(buffer) for buffer in buffers] == sizes


pickling.configure(pickle.dumps, _load, 5, 4096)
run(one_input)
