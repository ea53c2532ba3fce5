"""Loads fast paths: dlopen, look up the table, check its version, wrap it in a capsule."""
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_New


cdef extern from "pympx/transport.h" nogil:
    ctypedef struct mpx_transport:
        unsigned int abi_version
    enum: MPX_ABI_VERSION

cdef extern from "dlfcn.h" nogil:
    void *dlopen(const char *, int)
    void *dlsym(void *, const char *)
    char *dlerror()
    enum: RTLD_NOW
    enum: RTLD_LOCAL

ctypedef const mpx_transport *(*TableFunction)() noexcept
ctypedef const mpx_transport *(*LayerFunction)(const mpx_transport *, const char *, const char **) noexcept


cdef void *find(str path, bytes name) except NULL:
    """The symbol `name` of the shared library `path`, which stays loaded for the life of the process."""
    cdef void *library = dlopen(path.encode(), RTLD_NOW | RTLD_LOCAL)
    if library == NULL:
        raise OSError(f"cannot load transport: {dlerror().decode()}")
    cdef void *symbol = dlsym(library, name)
    if symbol == NULL:
        raise OSError(f"cannot load transport: {path} exports no {name.decode()}")
    return symbol


def load_table(str path):
    """Return the transport table of the shared library `path` as a PyCapsule ``pympx.transport.v1``.

    Raises OSError when it cannot be loaded or exports no table, ValueError when it speaks another ABI version.
    """
    cdef const mpx_transport *table = (<TableFunction>find(path, b"mpx_transport_table"))()
    if table.abi_version != MPX_ABI_VERSION:
        raise ValueError(f"{path} speaks transport ABI {table.abi_version}, this pympx speaks {MPX_ABI_VERSION}")
    return PyCapsule_New(<void *>table, b"pympx.transport.v1", NULL)


def load_layer(str path, over, str settings):
    """Return the table of the layer in the shared library `path` around the table in the capsule `over`, as a PyCapsule.

    Raises OSError when the library cannot be loaded or is no layer, ValueError with its reason when it refuses.
    """
    cdef const mpx_transport *inner = <const mpx_transport *>PyCapsule_GetPointer(over, b"pympx.transport.v1")
    cdef const char *why = b""
    cdef const mpx_transport *table = (<LayerFunction>find(path, b"mpx_layer_table"))(inner, settings.encode(), &why)
    if table == NULL:
        raise ValueError(why.decode())
    return PyCapsule_New(<void *>table, b"pympx.transport.v1", NULL)
