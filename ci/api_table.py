"""Which names of mpi4py.MPI pympx supports, as Markdown, from the code: ``python ci/api_table.py [--write]``.

--write puts it into README.md, between the two markers.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pympx import MPI
from pympx.api import names
from pympx.api.unsupported import is_supported

README = Path(__file__).resolve().parent.parent / "README.md"
BEGIN, END = "<!-- api table begin -->", "<!-- api table end -->"


def _row(what: str, supported: list[str], missing: list[str]) -> str:
    def listed(some: list[str]) -> str:
        return " ".join(some).replace("_", "\\_") or "-"

    return f"| {what} | {listed(supported)} | {listed(missing)} |"


def table() -> str:
    """Return the table: a row for the functions, one for each class with attributes of its own."""
    total = done = 0
    rows = ["| | supported | not yet: raises ERR\\_UNSUPPORTED\\_OPERATION |", "|---|---|---|"]
    groups: list[tuple[str, object, list[str]]] = [("functions", MPI, names.FUNCTIONS.split())]
    for name, kinds in names.CLASSES.items():
        # what is defined for all communicators but works on some only is shown where users look for it
        owner = MPI.Intracomm if name == "Comm" else getattr(MPI, name)
        groups.append((name, owner, sorted(" ".join(kinds.values()).split())))
    for what, owner, attributes in groups:
        if not attributes:
            continue
        supported = [name for name in attributes if is_supported(owner, name)]
        total, done = total + len(attributes), done + len(supported)
        rows.append(_row(what, supported, [name for name in attributes if name not in supported]))
    heading = f"{done} of the {total} functions, methods and properties of mpi4py.MPI 4.1.2 are supported; all constants exist.\n"
    return "\n".join([heading, *rows])


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="put it into README.md")
    if not parser.parse_args().write:
        print(table())
        return 0
    text = README.read_text()
    if BEGIN not in text or END not in text:
        print(f"api_table: README.md has no {BEGIN} and {END}", file=sys.stderr)
        return 1
    before, rest = text.split(BEGIN, 1)
    README.write_text(f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END, 1)[1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
