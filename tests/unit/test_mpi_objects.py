"""MPI's objects without communication: groups, errors, datatypes, statuses, operations, infos, handles, unsupported names."""

from __future__ import annotations

import pickle
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pympx import MPI
from pympx.api import names
from pympx.api.group import Group
from pympx.api.unsupported import is_supported

ROOT = Path(__file__).resolve().parents[2]


def group(*members: int, own: int = 0) -> Group:
    return Group._of(members, own)


def test_groups() -> None:
    g = group(5, 3, 7, 1, own=7)
    assert (g.size, g.rank) == (4, 2)
    assert g.Incl([3, 0]) == group(1, 5)
    assert g.Excl([1]) == group(5, 7, 1)
    assert g.Range_incl([(0, 3, 2)]) == group(5, 7)
    assert g.Range_incl([(3, 0, -1)]) == group(1, 7, 3, 5)
    assert g.Range_excl([(0, 1, 1)]) == group(7, 1)
    other = group(7, 9, 5)
    assert Group.Union(g, other) == group(5, 3, 7, 1, 9)
    assert Group.Intersection(g, other) == Group.Intersect(g, other) == group(5, 7)
    assert Group.Difference(g, other) == group(3, 1)
    assert g.Translate_ranks([0, 1, MPI.PROC_NULL], other) == [2, MPI.UNDEFINED, MPI.PROC_NULL]
    assert g.Translate_ranks(group=g) == [0, 1, 2, 3]
    assert g.Compare(group(5, 3, 7, 1)) == MPI.IDENT
    assert g.Compare(group(1, 3, 7, 5)) == MPI.SIMILAR
    assert g.Compare(group(1, 3)) == MPI.UNEQUAL
    assert group(1, own=2).rank == MPI.UNDEFINED
    assert pickle.loads(pickle.dumps(g)) == g


def test_groups_that_err() -> None:
    g = group(5, 3)
    for call, error_class, words in (
        (lambda: g.Incl([2]), MPI.ERR_RANK, "rank is 2, must be 0..1"),
        (lambda: g.Incl([0, 0]), MPI.ERR_RANK, "twice"),
        (lambda: g.Range_incl([(0, 1, 0)]), MPI.ERR_ARG, "stride"),
        (lambda: MPI.GROUP_NULL.Get_size(), MPI.ERR_GROUP, "GROUP_NULL"),
    ):
        with pytest.raises(MPI.Exception, match=words) as caught:
            call()
        assert caught.value.Get_error_class() == error_class
    g.Free()
    assert not g
    assert g == MPI.GROUP_NULL
    with pytest.raises(MPI.Exception):
        g.Free()
    g.free()


def test_exceptions_compare_with_their_class() -> None:
    error = MPI.Exception(MPI.ERR_TRUNCATE, "70 bytes, buffer holds 60")
    assert error == MPI.ERR_TRUNCATE
    assert error == MPI.Exception(MPI.ERR_TRUNCATE)
    assert error != MPI.ERR_RANK
    assert error > MPI.SUCCESS
    assert error >= MPI.ERR_TRUNCATE
    assert error < MPI.ERR_LASTCODE
    assert error <= MPI.ERR_TRUNCATE
    assert hash(error) == hash(MPI.ERR_TRUNCATE)
    assert int(error) == error.error_code == error.error_class == MPI.ERR_TRUNCATE
    assert "70 bytes" in str(error)
    assert "MPI_ERR_TRUNCATE" in str(error)
    assert not MPI.Exception()
    assert isinstance(error, RuntimeError)
    assert MPI.Get_error_class(MPI.ERR_ARG) == MPI.ERR_ARG
    assert "invalid argument" in MPI.Get_error_string(MPI.ERR_ARG)


def test_error_classes_are_distinct() -> None:
    values = [getattr(MPI, name) for name in names.CONSTANTS.split() if name.startswith("ERR_") and isinstance(getattr(MPI, name), int)]
    assert len(values) > 55
    assert len(set(values)) == len(values)


@pytest.mark.parametrize("name", sorted(set(names.CONSTANTS.split())))
def test_datatypes_have_the_sizes_of_their_items(name: str) -> None:
    datatype = getattr(MPI, name)
    if not isinstance(datatype, MPI.Datatype) or not datatype:
        return
    char = datatype.typechar
    if char:
        assert datatype.size == np.dtype("S1" if char == "c" else char).itemsize
        if char in "bBhHiIlLqQfd":
            assert datatype.size == struct.calcsize(char)
        assert MPI.Datatype.fromcode(char).size == datatype.size
    digits = "".join(c for c in name.removesuffix("_T") if c.isdigit())
    if digits and name.startswith(("INTEGER", "REAL", "LOGICAL", "COMPLEX")):
        assert datatype.size == int(digits)
    elif digits and name.endswith("_T"):
        assert datatype.size * 8 == int(digits)
    assert datatype.Get_extent() == (0, datatype.size)
    assert pickle.loads(pickle.dumps(datatype)) == datatype
    assert MPI.Datatype.fromhandle(datatype.handle) == datatype


def test_datatypes_by_code() -> None:
    for code in ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "f16", "c8", "c16", "c32", "b1"):
        assert MPI.Datatype.fromcode(code).size == np.dtype(code).itemsize
    with pytest.raises(KeyError):
        MPI.Datatype.fromcode("nothing")
    assert not MPI.DATATYPE_NULL
    assert MPI.Datatype() == MPI.DATATYPE_NULL
    assert MPI.DOUBLE != MPI.FLOAT


def test_statuses() -> None:
    status = MPI.Status()
    assert (status.source, status.tag, status.error, status.count) == (MPI.ANY_SOURCE, MPI.ANY_TAG, MPI.SUCCESS, 0)
    status.Set_elements(MPI.DOUBLE, 3)
    assert (status.Get_count(MPI.INT), status.Get_count(MPI.BYTE), status.count) == (6, 24, 24)
    status.count = 7
    assert status.Get_count(MPI.INT) == MPI.UNDEFINED
    status.count = 5 << 32
    status.cancelled = True
    assert (status.count, status.cancelled) == (5 << 32, True)
    status.source, status.tag, status.error = 3, 4, MPI.ERR_OTHER
    for copy in (MPI.Status(status), pickle.loads(pickle.dumps(status)), MPI.Status.f2py(status.py2f())):
        assert copy == status
        assert type(copy) is MPI.Status
    with pytest.raises(MPI.Exception):
        MPI.Status.f2py([1, 2])


def test_operations_on_objects() -> None:
    for op, expected in {
        MPI.SUM: 8, MPI.PROD: 12, MPI.MIN: 2, MPI.MAX: 6, MPI.LAND: True, MPI.LOR: True, MPI.LXOR: False, MPI.BAND: 2, MPI.BOR: 6,
        MPI.BXOR: 4, MPI.REPLACE: 2, MPI.NO_OP: 6,
    }.items():  # fmt: skip
        assert op(6, 2) == expected, op
        assert op.is_predefined
        assert pickle.loads(pickle.dumps(op)) == op
        assert MPI.Op.fromhandle(op.handle) == op
    assert MPI.MINLOC((3, 5), (3, 1)) == (3, 1)
    assert MPI.MAXLOC((3, 5), (4, 9)) == (4, 9)
    assert not MPI.NO_OP.is_commutative
    with pytest.raises(MPI.Exception, match="OP_NULL"):
        MPI.OP_NULL(1, 2)
    mine = MPI.Op.Create(lambda a, b, datatype: None, commute=True)
    assert mine.is_commutative
    assert not mine.is_predefined
    assert mine not in (MPI.SUM, MPI.OP_NULL)
    mine.Free()
    assert mine == MPI.OP_NULL
    MPI.SUM.free()
    assert MPI.SUM(1, 1) == 2


def test_infos() -> None:
    info = MPI.Info.Create({"a": "1"})
    info["b"] = "2"
    info.update(c="3")
    assert (info.Get("a"), info.Get("x"), info.get("x", "y"), len(info), "b" in info) == ("1", None, "y", 3, True)
    assert (info.keys(), info.values(), info.Get_nthkey(1), list(info)) == (["a", "b", "c"], ["1", "2", "3"], "b", ["a", "b", "c"])
    copy, same = info.Dup(), MPI.Info.fromhandle(info.handle)
    assert (same == info, copy == info, copy.items() == info.items()) == (True, False, True)
    info.Delete("a")
    assert same.pop("b") == "2"
    assert info.popitem() == ("c", "3")
    with pytest.raises(MPI.Exception) as caught:
        info.Delete("a")
    assert caught.value == MPI.ERR_INFO_NOKEY
    with pytest.raises(MPI.Exception, match="key of 256"):
        info.Set("k" * 256, "")
    info.Free()
    assert info == same == MPI.INFO_NULL
    assert not MPI.INFO_NULL
    with pytest.raises(MPI.Exception, match="INFO_NULL"):
        info.Get("a")


def test_grids() -> None:
    assert MPI.Compute_dims(12, 2) == [4, 3]
    assert MPI.Compute_dims(16, 3) == [4, 2, 2]
    assert MPI.Compute_dims(12, [0, 3, 0]) == [2, 3, 2]
    assert MPI.Compute_dims(7, 2) == [7, 1]
    for dims in ([2, 0], [1, 1]):
        with pytest.raises(MPI.Exception) as caught:
            MPI.Compute_dims(7, dims)
        assert caught.value == MPI.ERR_DIMS


def test_error_handlers() -> None:
    assert MPI.COMM_SELF.Get_errhandler() == MPI.ERRORS_RETURN
    MPI.COMM_SELF.Set_errhandler(MPI.ERRORS_RETURN)
    for handler in (MPI.ERRORS_ARE_FATAL, MPI.ERRORS_ABORT):
        with pytest.raises(NotImplementedError, match="ERRORS_A"):
            MPI.COMM_SELF.Set_errhandler(handler)


def unsupported() -> list[str]:
    out = [name for name in names.FUNCTIONS.split() if not is_supported(MPI, name)]
    for cls, kinds in names.CLASSES.items():
        for kind in ("methods", "classmethods", "staticmethods"):
            out += [f"{cls}.{name}" for name in kinds.get(kind, "").split() if not is_supported(getattr(MPI, cls), name)]
    return out


@pytest.mark.parametrize("name", unsupported())
def test_unsupported_names_raise_naming_themselves(name: str) -> None:
    target = MPI
    for part in name.split("."):
        target = getattr(target, part)
    with pytest.raises(MPI.Exception, match=rf"MPI\.{name} is not supported") as caught:
        target(1, 2, key=3)  # type: ignore[operator]
    assert caught.value == MPI.ERR_UNSUPPORTED_OPERATION
    assert isinstance(caught.value, NotImplementedError)


def test_unsupported_properties_and_null_handles() -> None:
    for null in (MPI.WIN_NULL, MPI.FILE_NULL, MPI.SESSION_NULL, MPI.MESSAGE_NULL):
        assert not null
        assert null == type(null)()
    assert MPI.MESSAGE_NO_PROC != MPI.MESSAGE_NULL
    with pytest.raises(MPI.Exception, match=r"MPI\.Win\.model is not"):
        _ = MPI.WIN_NULL.model  # type: ignore[attr-defined]
    with pytest.raises(TypeError):
        MPI.Grequest(MPI.Request())  # type: ignore[arg-type]


def test_readme_has_the_table_of_the_code() -> None:
    command = [sys.executable, "-P", str(ROOT / "ci" / "api_table.py")]
    table = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    assert table in (ROOT / "README.md").read_text(), "run: python ci/api_table.py --write"


def test_package_is_light_and_has_counters() -> None:
    code = "import pympx, sys; assert not [m for m in sys.modules if m.startswith('pympx.b')]; print(pympx.counters())"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "{}\n"


def test_options() -> None:
    code = "import pympx; pympx.rc.initialize = False; from pympx import MPI as M; print(M.Is_initialized(), M.Init(), M.Is_initialized())"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "False None True\n"
    done = subprocess.run([sys.executable, "-P", "-c", "import pympx; pympx.rc.nonsense = 1"], capture_output=True, text=True, timeout=60)
    assert "no option 'nonsense'" in done.stderr
