"""The tests of this folder need a process of their own, which `tests.ops.kernels.test_kernels` starts."""

from __future__ import annotations

import os

IS_INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"

if IS_INTERPRETING:
    import triton  # noqa: F401  # from now on kernels run on CPU tensors

collect_ignore_glob = [] if IS_INTERPRETING else ["test_*.py"]
