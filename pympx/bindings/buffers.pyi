from collections.abc import Callable
from typing import Any

def register(decode_exotic: Callable[[Any, bool], tuple[int, int, str | None, Any]], in_place: object) -> None: ...
