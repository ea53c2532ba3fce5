"""`pympx.rc`: what a program may set before it imports `pympx.MPI`; the same options as mpi4py.rc has."""

from __future__ import annotations

from typing import Any


class Options:
    """Options for the import of `pympx.MPI`; set attributes, or call with keywords. Raises TypeError for an unknown one.

    initialize: whether importing counts as Init. errors: "exception" or "default", errors raise either way.
    The others are accepted because programs set them; nothing depends on them here: threads may always do everything, the runtime
    is finalized at exit in any case, objects are reduced in rank order and have no size limit.
    """

    initialize: bool = True
    threads: bool = True
    thread_level: str = "multiple"
    finalize: bool | None = None
    fast_reduce: bool = True
    recv_mprobe: bool = True
    irecv_bufsz: int = 32768
    errors: str = "exception"

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.options():
            raise TypeError(f"pympx.rc has no option {name!r}; there are {', '.join(self.options())}")
        super().__setattr__(name, value)

    def __call__(self, **options: Any) -> None:
        """Set several options."""
        for name, value in options.items():
            setattr(self, name, value)

    @classmethod
    def options(cls) -> tuple[str, ...]:
        """Return the names of all options."""
        return tuple(cls.__annotations__)

    def __repr__(self) -> str:
        return f"<pympx.rc: {', '.join(f'{name}={getattr(self, name)!r}' for name in self.options())}>"


rc = Options()
