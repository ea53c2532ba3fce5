from collections.abc import Callable

exception_class: Callable[[int, str], BaseException]

explain_failure: Callable[[int], str] | None

def register(cls: Callable[[int, str], BaseException]) -> None: ...
def register_explanation(explain: Callable[[int], str]) -> None: ...
