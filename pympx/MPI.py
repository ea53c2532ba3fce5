"""The names that users of mpi4py know: ``from pympx import MPI``."""

from .api import startup as _startup  # noqa: F401
from .api.comm import COMM_NULL, COMM_SELF, COMM_WORLD, Comm, Intracomm  # noqa: F401
from .api.constants import *  # noqa: F403
from .api.environment import *  # noqa: F403
from .api.errors import Exception  # noqa: F401
from .api.group import GROUP_EMPTY, GROUP_NULL, Group  # noqa: F401
from .api.memory import *  # noqa: F403
from .api.request import REQUEST_NULL, Grequest, Prequest, Request  # noqa: F401
from .bindings.status import Status  # noqa: F401
from .api import datatype as _d, op as _o
globals().update(_d.PREDEFINED); globals().update(_o.PREDEFINED)
from .api.errors import CLASSES as _classes  # noqa: E402
globals().update({name: value for name, (value, _) in _classes.items()})
from .api.datatype import DATATYPE_NULL, Datatype  # noqa: E402, F401
from .api.op import OP_NULL, Op  # noqa: E402, F401
