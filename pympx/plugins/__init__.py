"""How transports are found and described to the runtime. Registration only: never on the data path."""

from .api import NativeTransport, TransportPlugin, hookimpl, native_table

__all__ = ["NativeTransport", "TransportPlugin", "hookimpl", "native_table"]
