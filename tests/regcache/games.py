"""Play with Python's objects above a card, beside native threads that play with plain memory, and print the score as JSON.

``games.py LIBRARY ROUNDS SEED``: a library that meson.build made, with or without a planted fault. Each round is one transfer from or to
an object, checked byte by byte by the library.
"""

from __future__ import annotations

import array
import ctypes
import json
import mmap
import random
import sys
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

PLAYERS = 3
#: of the rounds, how many are played here, with objects
OBJECTS = 0.3
#: malloc maps what is larger (library.cc sets its threshold), so that freeing it unmaps it
MAPPED = 128 << 10


#: what is counted, in the order of board.h
COUNTED = (
    "rounds", "stale_bytes", "stale_rounds", "hits", "misses", "uncacheable", "reused", "evictions", "invalidated", "refused", "forks",
    "bad_children",
)  # fmt: skip


class Board:
    """The library."""

    def __init__(self, path: str, numbers: random.Random) -> None:
        self._library = ctypes.CDLL(path)
        self._library.board_open.restype = self._library.board_reason.restype = ctypes.c_char_p
        self._numbers = numbers
        if problem := self._library.board_open():
            raise OSError(problem.decode())

    def transfer(self, address: int, length: int) -> None:
        """Play one round with memory that can be written: mostly send, else receive."""
        play = self._library.board_send if self._numbers.random() < 0.75 else self._library.board_receive
        play(ctypes.c_void_p(address), ctypes.c_size_t(length), ctypes.c_uint64(self._numbers.getrandbits(63) | 1))

    def send_as_it_is(self, address: int, length: int) -> None:
        self._library.board_send_as_it_is(ctypes.c_void_p(address), ctypes.c_size_t(length))

    def changing(self, address: int, length: int) -> None:
        """Say that the mapping of this memory ends: it is about to be freed."""
        if length > 0:
            self._library.board_changing(ctypes.c_void_p(address), ctypes.c_size_t(length))

    def freeing(self, address: int, length: int) -> None:
        """Say that an object's memory is about to be freed by malloc."""
        if length > MAPPED:
            self.changing(address, length)

    def start(self, rounds: int, seed: int) -> None:
        self._library.board_start(PLAYERS, ctypes.c_uint64(rounds), ctypes.c_uint64(seed))

    def finish(self) -> dict[str, Any]:
        """Wait for the players; return the score."""
        self._library.board_finish()
        score = (ctypes.c_uint64 * len(COUNTED))()
        self._library.board_score(score)
        reason = self._library.board_reason().decode()
        self._library.board_close()
        return dict(zip(COUNTED, score, strict=True)) | {"reason": reason}


class Game(Protocol):
    """An object that is played with."""

    def change(self) -> None: ...
    def play(self) -> None: ...


class Games:
    """What all games share: the board and the dice."""

    def __init__(self, board: Board, numbers: random.Random) -> None:
        self.board, self.numbers = board, numbers

    def size(self) -> int:
        """Return a number of bytes, most often one that malloc maps."""
        return self.numbers.randrange(1, 48 << 10) if self.numbers.random() < 0.2 else self.numbers.randrange(MAPPED + 8192, 384 << 10)


class Array(Games):
    """array.array: appending moves it without a word."""

    def __init__(self, board: Board, numbers: random.Random) -> None:
        super().__init__(board, numbers)
        self.it = array.array("d", bytes(self.size() // 8 * 8 + 8))

    def where(self) -> tuple[int, int]:
        address, count = self.it.buffer_info()
        return address, count * 8

    def change(self) -> None:
        kind = self.numbers.randrange(3)
        if kind == 0:
            self.board.freeing(*self.where())
            self.it = array.array("d", bytes(self.size() // 8 * 8 + 8))
        elif kind == 1 and len(self.it) < 60_000:
            self.it.extend([0.0] * self.numbers.randrange(1, 20_000))
        else:
            del self.it[max(1, len(self.it) // self.numbers.randrange(1, 4)) :]

    def play(self) -> None:
        self.board.transfer(*self.where())


class Bytearray(Games):
    """bytearray: grows, shrinks, is emptied."""

    def __init__(self, board: Board, numbers: random.Random) -> None:
        super().__init__(board, numbers)
        self.it = bytearray(self.size())

    def change(self) -> None:
        kind = self.numbers.randrange(3)
        if kind == 0:
            self.board.freeing(address_of(self.it), len(self.it))
            self.it = bytearray(self.size())
        elif kind == 1 and len(self.it) < 600_000:
            self.it += bytes(self.numbers.randrange(1, 200_000))
        else:
            del self.it[len(self.it) // 2 + 1 :]

    def play(self) -> None:
        self.board.transfer(address_of(self.it), len(self.it))


class Mapped(Games):
    """mmap.mmap, private or shared: resized, closed while nobody looks, made anew where the old one was."""

    def __init__(self, board: Board, numbers: random.Random, flags: int) -> None:
        super().__init__(board, numbers)
        self.flags = flags
        self.it = self.make()

    def make(self) -> mmap.mmap:
        return mmap.mmap(-1, self.size(), flags=self.flags | mmap.MAP_ANONYMOUS)

    def change(self) -> None:
        length = len(self.it)
        if self.flags == mmap.MAP_PRIVATE and self.numbers.random() < 0.5:
            self.it.resize(max(1, min(600_000, length * self.numbers.randrange(1, 5) // 2)))
            return
        self.board.changing(address_of(self.it), length)
        self.it.close()
        self.it = self.make()

    def play(self) -> None:
        self.board.transfer(address_of(self.it), len(self.it))


class Ndarray(Games):
    """numpy.ndarray: resized in place, replaced by another, a part of it."""

    def __init__(self, board: Board, numbers: random.Random) -> None:
        super().__init__(board, numbers)
        self.it = np.zeros(self.size(), np.uint8)

    def change(self) -> None:
        if self.numbers.random() < 0.4:
            self.it.resize(self.numbers.randrange(1, 600_000), refcheck=False)
            return
        self.board.freeing(self.it.ctypes.data, self.it.nbytes)
        length = self.size()
        del self.it
        self.it = np.empty(length, np.uint8)

    def play(self) -> None:
        part = self.it[self.numbers.randrange(self.it.size) :] if self.numbers.random() < 0.2 else self.it
        self.board.transfer(part.ctypes.data, part.nbytes)


class Bytes(Games):
    """bytes: a new object each time, that nobody writes."""

    def __init__(self, board: Board, numbers: random.Random) -> None:
        super().__init__(board, numbers)
        self.it = numbers.randbytes(self.size())

    def change(self) -> None:
        address = np.frombuffer(self.it, np.uint8).ctypes.data
        self.board.freeing(address, len(self.it))
        del self.it
        self.it = self.numbers.randbytes(self.size())

    def play(self) -> None:
        self.board.send_as_it_is(np.frombuffer(self.it, np.uint8).ctypes.data, len(self.it))


class Heap(Games):
    """Objects that lie in the heap proper; when they are freed the program's break goes back, and new ones come to lie there again."""

    def __init__(self, board: Board, numbers: random.Random) -> None:
        super().__init__(board, numbers)
        self._libc = ctypes.CDLL(None)
        self._libc.sbrk.restype = ctypes.c_void_p
        self.them: list[bytearray] = []
        self.change()

    def _end(self) -> int:
        return int(self._libc.sbrk(0) or 0)

    def change(self) -> None:
        self.them.clear()
        before = self._end()
        self._libc.malloc_trim(0)
        self.board.changing(self._end(), before - self._end())
        self.them += [bytearray(self.numbers.randrange(16 << 10, 96 << 10)) for _ in range(8)]

    def play(self) -> None:
        it = self.numbers.choice(self.them)
        self.board.transfer(address_of(it), len(it))


def address_of(it: bytearray | mmap.mmap) -> int:
    """Return where an object's bytes are now."""
    return ctypes.addressof(ctypes.c_char.from_buffer(it))


def main(library: str, rounds: int, seed: int) -> None:
    """Play, and print the score."""
    numbers = random.Random(seed)
    board = Board(library, numbers)
    kinds: list[Callable[[], Game]] = [
        lambda: Array(board, numbers),
        lambda: Bytearray(board, numbers),
        lambda: Mapped(board, numbers, mmap.MAP_PRIVATE),
        lambda: Ndarray(board, numbers),
        lambda: Ndarray(board, numbers),
        lambda: Bytes(board, numbers),
        lambda: Heap(board, numbers),
    ]
    games = [make() for make in kinds]
    rare: Game = Mapped(board, numbers, mmap.MAP_SHARED)  # never kept
    own = int(rounds * OBJECTS)
    board.start((rounds - own) // PLAYERS + 1, seed)
    for _ in range(own):
        game = numbers.choice(games) if numbers.random() < 0.97 else rare
        if numbers.random() < 0.15:
            game.change()
        game.play()
    print(json.dumps(board.finish() | {"seed": seed}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
