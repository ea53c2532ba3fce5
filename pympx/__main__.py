"""``python -m pympx TOOL ...``: runs ``pympx.tools.TOOL:main(argv) -> exit code``, importing only that tool."""

from __future__ import annotations

import importlib
import pkgutil
import sys

from . import __version__, tools


def _names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(tools.__path__) if not module.name.startswith("_"))


def _usage() -> str:
    lines = ["usage: python -m pympx TOOL [arguments]      (python -m pympx TOOL --help explains one)", "", "tools:"]
    for name in _names():
        try:
            summary = (importlib.import_module(f"pympx.tools.{name}").__doc__ or "").strip().partition("\n")[0]
        except ImportError as error:
            summary = f"not usable here: {error}"
        lines.append(f"  {name:<10}{summary}")
    return "\n".join([*lines, "", f"pympx {__version__}"])


def main(argv: list[str]) -> int:
    """Dispatch to the tool that ``argv[0]`` names; return the process's exit code."""
    if not argv:
        print(_usage(), file=sys.stderr)
        return 2
    name, rest = argv[0], argv[1:]
    if name in ("-h", "--help"):
        print(_usage())
        return 0
    if name == "--version":
        print(f"pympx {__version__}")
        return 0
    if name not in _names():
        print(f"pympx: no tool is called {name!r}: use one of {', '.join(_names())}", file=sys.stderr)
        return 2
    tool = importlib.import_module(f"pympx.tools.{name}")
    return int(tool.main(rest))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
