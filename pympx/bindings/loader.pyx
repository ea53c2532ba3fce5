"""Loads fast paths: dlopen, look up the table, check its version, wrap it in a capsule."""
from cpython.pycapsule cimport PyCapsule_New

from .engine cimport MPX_ABI_VERSION, mpx_transport


cdef extern from "dlfcn.h" nogil:
    void *dlopen(const char *, int)
    void *dlsym(void *, const char *)
    char *dlerror()
    enum: RTLD_NOW
    enum: RTLD_LOCAL

ctypedef const mpx_transport *(*TableFunction)() noexcept


def load_table(str path):
    """Return the transport table of the shared library `path` as a PyCapsule ``pympx.transport.v1``.

    The library stays loaded for the life of the process. Raises OSError when it cannot be loaded or exports no table,
    ValueError when it speaks another ABI version.
    """
    cdef void *library = dlopen(path.encode(), RTLD_NOW | RTLD_LOCAL)
    if library == NULL:
        raise OSError(f"cannot load transport: {dlerror().decode()}")
    cdef TableFunction function = <TableFunction>dlsym(library, b"mpx_transport_table")
    if function == NULL:
        raise OSError(f"cannot load transport: {path} exports no mpx_transport_table")
    cdef const mpx_transport *table = function()
    if table.abi_version != MPX_ABI_VERSION:
        raise ValueError(f"{path} speaks transport ABI {table.abi_version}, this pympx speaks {MPX_ABI_VERSION}")
    return PyCapsule_New(<void *>table, b"pympx.transport.v1", NULL)
