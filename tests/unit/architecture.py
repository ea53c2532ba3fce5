"""Who may know whom in this repository (ARCHITECTURE.md), as functions that return violations: ["path:line: what is wrong", ...]."""

from __future__ import annotations

import ast
import re
import types
from collections.abc import Callable, Iterable, Iterator
from inspect import getattr_static
from pathlib import Path

NATIVE = (".c", ".cc", ".cpp", ".h", ".hh", ".hpp")
CYTHON = (".pyx", ".pxd", ".pxi")
ENGINE_LINES, BINDINGS_LINES, TRANSPORT_LINES = 8000, 3000, 2500
#: what a user imports of pympx, and so may an app
PUBLIC = ("pympx.MPI", "pympx.counters", "pympx.dsm", "pympx.plugins", "pympx.rpc")
HOT_COMM = ("Send", "Recv", "Ssend", "Isend", "Irecv", "Sendrecv", "Barrier", "Bcast", "Reduce", "Allreduce", "Get_rank", "Get_size")
HOT_REQUEST = ("Wait", "Test")

_INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')
_CYTHON_IMPORT = re.compile(r"^\s*(?:from\s+([\w.]+)\s+(?:c?import)\s+(.+)|c?import\s+(.+))")
_CYTHON_EXTERN = re.compile(r"""^\s*cdef\s+extern\s+from\s+["']<?([^"'>]+)>?["']""")
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')


def files(folder: Path, suffixes: Iterable[str]) -> Iterator[Path]:
    """Yield the files of a folder with one of the suffixes, sorted."""
    wanted = tuple(suffixes)
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix in wanted and "__pycache__" not in path.parts:
            yield path


def transport_names(root: Path) -> list[str]:
    folder = root / "transports"
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name != "__pycache__") if folder.is_dir() else []


def includes(path: Path) -> Iterator[tuple[int, bool, str]]:
    """Yield (line, in quotes, header) of each #include."""
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if match := _INCLUDE.match(line):
            yield number, match[1] == '"', match[2]


def imports(path: Path, module: str) -> Iterator[tuple[int, str]]:
    """Yield (line, absolute dotted name) of each thing that a Python or Cython file imports, wherever in it.

    `module` is the file's own name: relative imports are resolved against it. ``from a import b`` gives ``a.b``.
    """
    package = module.split(".") if path.stem == "__init__" else module.split(".")[:-1]

    def absolute(name: str) -> str:
        dots = len(name) - len(name.lstrip("."))
        return ".".join([*package[: len(package) - (dots - 1)], *filter(None, [name[dots:]])]) if dots else name

    if path.suffix in CYTHON:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            match = _CYTHON_IMPORT.match(line.partition("#")[0])
            if match:
                words = [word.split()[0] for word in (match[2] or match[3]).strip("() \\").split(",") if word.split()]
                yield from ((number, f"{absolute(match[1])}.{word}" if match[1] else word) for word in words)
        return
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = absolute("." * node.level + (node.module or ""))
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__"):
                yield node.lineno, absolute(node.args[0].value)


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def _module(root: Path, path: Path) -> str:
    """Return the dotted name under which a file is installed (transports/ becomes pympx.transports)."""
    parts = list(path.relative_to(root).with_suffix("").parts)
    if parts[0] == "transports":
        parts.insert(0, "pympx")
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports_of(root: Path, folder: Path, suffixes: Iterable[str] = (".py", ".pyi", *CYTHON)) -> Iterator[tuple[str, str]]:
    """Yield (place, imported name) for all files of a folder."""
    for path in files(folder, suffixes):
        for line, name in imports(path, _module(root, path)):
            yield f"{path.relative_to(root)}:{line}", name


def check_engine(root: Path) -> list[str]:
    """engine/ and trampoline/ include transport.h, the standard library, the system and their own files: no Python, no transport."""
    return [problem for room in ("engine", "trampoline") for problem in _check_native(root, room)]


def _check_native(root: Path, room: str) -> list[str]:
    found = []
    folder = root / "pympx" / room
    names = transport_names(root)
    for path in files(folder, NATIVE):
        place = path.relative_to(root)
        for line, quoted, header in includes(path):
            target = (folder.parent if header.startswith(f"{room}/") else path.parent) / header
            if quoted and not (target.exists() and target.resolve().is_relative_to(folder.resolve())):
                found.append(f"{place}:{line}: the {room} includes {header}, which is not its own")
            elif not quoted and header != "pympx/transport.h" and re.match(r"Python\.h|numpy/|pympx/|engine/|transports/|pluggy", header):
                found.append(f"{place}:{line}: the {room} includes <{header}>; of pympx it knows <pympx/transport.h> only")
        for line, text in enumerate(path.read_text().splitlines(), 1):
            code = text.partition("//")[0]
            named = [name for name in names if not _INCLUDE.match(code) and name in _STRING.findall(code)]
            found += [f"{place}:{line}: the {room} names the transport {name}" for name in named]
    return found


def check_abi(root: Path) -> list[str]:
    """transport.h is plain C and includes C's own headers only; what helps beside it includes the standard library only."""
    allowed = {"stddef.h", "stdint.h", "stdbool.h"}
    return [
        f"{path.relative_to(root)}:{line}: the ABI includes {header}; it may include {', '.join(sorted(allowed))}"
        for path in files(root / "pympx" / "include", NATIVE)
        for line, quoted, header in includes(path)
        if header not in allowed and (path.name == "transport.h" or quoted or "." in header or "/" in header)
    ]


def check_transports(root: Path) -> list[str]:
    """A transport includes <pympx/...>, the system and its own files; of pympx its Python imports the plugin API only."""
    found = []
    for name in transport_names(root):
        folder = root / "transports" / name
        for path in files(folder, NATIVE):
            place = path.relative_to(root)
            for line, quoted, header in includes(path):
                target = (path.parent / header).resolve()
                if quoted and not (target.exists() and target.is_relative_to(folder.resolve())):
                    found.append(f"{place}:{line}: transport {name} includes {header}, which is not its own")
                elif not quoted and re.match(r"Python\.h|numpy/|engine/|transports/|pympx/\.\.", header):
                    found.append(f"{place}:{line}: transport {name} includes <{header}>")
        for place_, imported in _imports_of(root, folder):
            if within(imported, "pympx") and not (within(imported, "pympx.plugins") or within(imported, f"pympx.transports.{name}")):
                found.append(f"{place_}: transport {name} imports {imported}; of pympx it may import pympx.plugins")
            elif within(imported, "transports"):
                found.append(f"{place_}: transport {name} imports {imported}")
    return found


def _docstrings(tree: ast.AST) -> set[int]:
    """Return the ids of the nodes that are docstrings."""
    return {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }


def check_layers(root: Path) -> list[str]:
    """collectives, dsm and rpc never import or name a transport."""
    found = []
    names = transport_names(root)
    for room in ("collectives", "dsm", "rpc", "aio"):
        folder = root / "pympx" / room
        for place, imported in _imports_of(root, folder):
            if within(imported, "pympx.transports") or within(imported, "pympx.plugins"):
                found.append(f"{place}: {room} imports {imported}")
        for path in files(folder, [".py"]):
            tree = ast.parse(path.read_text(), str(path))
            documentation = _docstrings(tree)
            for node in ast.walk(tree):
                if isinstance(node, ast.Constant) and node.value in names and id(node) not in documentation:
                    found.append(f"{path.relative_to(root)}:{node.lineno}: {room} names the transport {node.value}")
        for path in files(folder, NATIVE):
            for line, _, header in includes(path):
                if "transports/" in header:
                    found.append(f"{path.relative_to(root)}:{line}: {room} includes {header}")
    return found


def check_api(root: Path) -> list[str]:
    """api and bindings import no transport; api is there on top of bindings, never the other way round."""
    found = []
    for room in ("api", "bindings"):
        for place, imported in _imports_of(root, root / "pympx" / room):
            if within(imported, "pympx.transports"):
                found.append(f"{place}: {room} imports {imported}")
            elif room == "bindings" and within(imported, "pympx.api"):
                found.append(f"{place}: bindings imports {imported}, which sits on it")
    for path in files(root / "pympx" / "bindings", CYTHON):
        for line, text in enumerate(path.read_text().splitlines(), 1):
            if (match := _CYTHON_EXTERN.match(text)) and "transports/" in match[1]:
                found.append(f"{path.relative_to(root)}:{line}: bindings includes {match[1]}")
    return found


def check_apps(root: Path) -> list[str]:
    """apps import of pympx only what a user would."""
    return [
        f"{place}: an app imports {imported}; public are {', '.join(PUBLIC)}"
        for place, imported in _imports_of(root, root / "apps")
        if within(imported, "pympx") and imported != "pympx" and not any(within(imported, name) for name in PUBLIC)
    ]


def check_sizes(root: Path) -> list[str]:
    """No room outgrows its limit in lines."""
    rooms = [("pympx/engine", ENGINE_LINES), ("pympx/bindings", BINDINGS_LINES)]
    rooms += [(f"transports/{name}", TRANSPORT_LINES) for name in transport_names(root)]
    found = []
    for room, limit in rooms:
        lines = sum(len(path.read_text().splitlines()) for path in files(root / room, (*NATIVE, *CYTHON, ".py")))
        if lines > limit:
            found.append(f"{room}: {lines} lines, at most {limit} are allowed")
    return found


def check_hot_methods(owner: type, names: Iterable[str]) -> list[str]:
    """Methods on the hot path are C methods: a frame of Python costs a third of what an 8-byte message may."""
    found = []
    for name in names:
        method = getattr_static(owner, name, None)
        if isinstance(method, (staticmethod, classmethod)):
            method = method.__func__
        if method is None:
            found.append(f"{owner.__name__} has no {name}")
        elif isinstance(method, types.FunctionType):
            found.append(f"{owner.__name__}.{name} is a Python function")
    return found


CHECKS: tuple[Callable[[Path], list[str]], ...] = (
    check_engine,
    check_abi,
    check_transports,
    check_layers,
    check_api,
    check_apps,
    check_sizes,
)
