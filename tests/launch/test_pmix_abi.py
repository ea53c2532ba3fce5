"""What pmix_abi.py claims of PMIx's ABI, against the header that Debian's libpmix-dev brings."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from pympx.bootstrap import pmix_abi as abi

PROGRAM = """
#include <pmix.h>
#include <stddef.h>
#include <stdio.h>
#define SHOW(what) printf("%s %zu\\n", #what, (size_t)(what))
int main(void) {
    SHOW(sizeof(pmix_proc_t)); SHOW(offsetof(pmix_proc_t, rank));
    SHOW(sizeof(pmix_value_t)); SHOW(offsetof(pmix_value_t, data)); SHOW(sizeof(((pmix_value_t *)0)->type));
    SHOW(offsetof(pmix_byte_object_t, size));
    SHOW(sizeof(pmix_info_t)); SHOW(offsetof(pmix_info_t, flags)); SHOW(offsetof(pmix_info_t, value));
    SHOW(PMIX_BOOL); SHOW(PMIX_UINT32); SHOW(PMIX_BYTE_OBJECT); SHOW(PMIX_GLOBAL); SHOW(PMIX_RANK_WILDCARD); SHOW(PMIX_SUCCESS);
    printf("%s %s\\n", PMIX_JOB_SIZE, PMIX_COLLECT_DATA);
    return 0;
}
"""


def test_layout_and_constants(tmp_path: Path) -> None:
    headers = [path.parent for path in Path("/usr").glob("lib/*/pmix*/include/pmix.h")]
    headers += [path.parent for path in Path("/usr/include").glob("**/pmix.h")]
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not headers or compiler is None:
        assert not os.environ.get("PYMPX_CI"), "needs a C compiler and Debian's libpmix-dev"
        pytest.skip("no C compiler, or no pmix.h (Debian: libpmix-dev)")
    source = tmp_path / "show.c"
    source.write_text(PROGRAM)
    subprocess.run([compiler, f"-I{headers[0]}", str(source), "-o", str(tmp_path / "show")], check=True, timeout=60)
    shown = subprocess.run([str(tmp_path / "show")], check=True, capture_output=True, text=True, timeout=60).stdout.splitlines()
    expected = [
        ctypes.sizeof(abi.Proc), abi.Proc.rank.offset,
        ctypes.sizeof(abi.Value), abi.Value.data.offset, abi.Value.type.size,
        abi.ByteObject.size.offset,
        ctypes.sizeof(abi.Info), abi.Info.flags.offset, abi.Info.value.offset,
        abi.BOOL, abi.UINT32, abi.BYTE_OBJECT, abi.GLOBAL, abi.RANK_WILDCARD, 0,
    ]  # fmt: skip
    assert [int(line.rpartition(" ")[2]) for line in shown[:-1]] == expected, shown
    assert shown[-1] == "pmix.job.size pmix.collect"
