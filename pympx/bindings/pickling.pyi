from collections.abc import Callable
from pickle import PickleBuffer
from typing import Any

from typing_extensions import Buffer, disjoint_base

def configure(dumps: Callable[..., bytes], loads: Callable[..., Any], protocol_number: int, out_of_band_from: int) -> None: ...

@disjoint_base
class Chunk:
    def __buffer__(self, flags: int, /) -> memoryview: ...

@disjoint_base
class Collector:
    def __call__(self, picklebuffer: PickleBuffer) -> bool | None: ...

def dumps_object(obj: Any) -> bytes: ...
def loads_object(message: Buffer) -> Any: ...
