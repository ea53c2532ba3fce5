"""What names an MPI module has: ``names.py MODULE`` prints them as JSON, {name: [kind, value]}, for mpi4py.MPI as for pympx.MPI.

kind: class, callable or constant; of a class's attribute: property, callable or classmethod. value: of integers, else null.
"""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from typing import Any

package = importlib.import_module(sys.argv[1].partition(".")[0])
package.rc.initialize = False
MPI: Any = importlib.import_module(sys.argv[1])


def kind_of(value: Any) -> str:
    if isinstance(value, type):
        return "class"
    return "callable" if callable(value) and not isinstance(value, MPI.Op) else "constant"


def kind_of_attribute(value: Any) -> str:
    if isinstance(value, property) or inspect.isgetsetdescriptor(value) or inspect.ismemberdescriptor(value):
        return "property"
    if isinstance(value, classmethod) or type(value).__name__ == "classmethod_descriptor":
        return "classmethod"
    return "callable" if callable(value) or isinstance(value, staticmethod) else "constant"


found: dict[str, tuple[str, int | None]] = {}
for name in dir(MPI):
    if name.startswith("_"):
        continue
    value = getattr(MPI, name)
    kind = kind_of(value)
    found[name] = kind, int(value) if isinstance(value, int) else None
    if kind == "class":
        for attribute in dir(value):
            if not attribute.startswith("_"):
                found[f"{name}.{attribute}"] = kind_of_attribute(inspect.getattr_static(value, attribute)), None
json.dump(found, sys.stdout)
