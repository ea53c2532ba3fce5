"""Constants of MPI 4.1, with the values of the MPICH ABI where it defines them."""

from __future__ import annotations

ANY_SOURCE = -2
ANY_TAG = -1
PROC_NULL = -1
ROOT = -3
UNDEFINED = -32766
TAG_UB = 0x7FFFFFFF

IDENT, CONGRUENT, SIMILAR, UNEQUAL = 0, 1, 2, 3

THREAD_SINGLE, THREAD_FUNNELED, THREAD_SERIALIZED, THREAD_MULTIPLE = 0, 1, 2, 3

BSEND_OVERHEAD = 96
MAX_PROCESSOR_NAME = 128
MAX_ERROR_STRING = 512
MAX_PORT_NAME = 1024
MAX_INFO_KEY = 255
MAX_INFO_VAL = 1024
MAX_OBJECT_NAME = 128
MAX_DATAREP_STRING = 128
MAX_LIBRARY_VERSION_STRING = 8192
MAX_PSET_NAME_LEN = 256
MAX_STRINGTAG_LEN = 256

VERSION, SUBVERSION = 4, 1


class InPlace(int):
    """The type of IN_PLACE."""

    def __repr__(self) -> str:
        return "IN_PLACE"


class Bottom(int):
    """The type of BOTTOM."""

    def __repr__(self) -> str:
        return "BOTTOM"


IN_PLACE = InPlace(-1)
BOTTOM = Bottom(0)
