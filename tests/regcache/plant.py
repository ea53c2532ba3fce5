"""Copy a source with one piece of it replaced: what is under test with a fault in it. ``plant.py SOURCE COPY PIECE INSTEAD``."""

from __future__ import annotations

import sys
from pathlib import Path


def main(source: str, copy: str, piece: str, instead: str) -> int:
    """Write the copy; returns the exit code."""
    text = Path(source).read_text()
    if text.count(piece) != 1:
        print(f"{source} has {piece!r} {text.count(piece)} times, not once")
        return 1
    Path(copy).write_text(text.replace(piece, instead))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
