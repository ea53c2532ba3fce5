from collections.abc import Callable

exception_class: Callable[[int, str], BaseException]

def register(cls: Callable[[int, str], BaseException]) -> None: ...
