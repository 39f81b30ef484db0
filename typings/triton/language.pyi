"""The language of the kernels: what its names compute is known to Triton's compiler alone."""

from typing import Any

class constexpr(Any):  # noqa: N801  # its name there
    def __init__(self, value: Any) -> None: ...

def __getattr__(name: str) -> Any: ...
