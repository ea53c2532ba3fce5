"""How transports are found and described to the runtime. Registration only: never on the data path."""

from .api import NativeTransport, PeerLost, Pump, PythonTransport, TransportPlugin, hookimpl, layer_table, native_table, setting
from .manager import load

__all__ = [
    "NativeTransport",
    "PeerLost",
    "Pump",
    "PythonTransport",
    "TransportPlugin",
    "hookimpl",
    "layer_table",
    "load",
    "native_table",
    "setting",
]
