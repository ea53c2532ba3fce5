"""pympx: a message-passing runtime for Python with mpi4py's API and pluggable transports.

Start with ``from pympx import MPI``. Importing this package alone loads nothing compiled, opens no socket and starts no thread.
"""

__version__ = "0.1.0"
