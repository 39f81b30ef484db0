"""Compiles every kernel for the GPUs in use, without one: python -m tests.ops.kernels.compile_kernels.

The interpreter accepts programs that the compiler refuses. Prints registers and spilled bytes of each.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pipeline.ops.kernels.sparse_conv import _conv3_kernel
from pipeline.render.field_kernel import _render_kernel

CAPABILITIES = (80, 90)  # A100, and nearly the same for L4 and L40S; H100 and H200
SPILL_LIMIT = 32  # bytes of a thread; more than a few registers in memory cost time at every sample
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
WIDE = {"HAS_BIAS": True, "ROWS": 128, "COLUMNS": 128, "DEPTH": 32, "WIDEN": False}
NARROW = WIDE | {"ROWS": 64, "COLUMNS": 64}
FIELD = {
    "GRID": 64, "RANK": 16, "PADDED_RANK": 16, "ENTRIES": 8, "HAS_OFFSETS": False, "SIDE": 8, "BITS": 4,
}  # fmt: skip


def compiled(
    kernel: Any, capability: int, types: Mapping[str, str], constants: Mapping[str, Any], warps: int
) -> tuple[int, int]:
    """Compile one kernel; returns registers and bytes of stack of a thread.

    Args:
        types: of the arguments; others are float32 numbers. Pointers and integers are multiples of 16.
    """
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types.get(name, "fp32") for name in names}
    aligned = [name for name in names if signature[name][0] in "*i"]
    source = ASTSource(
        kernel,
        signature,
        {(names.index(name),): value for name, value in constants.items()},
        {(names.index(name),): [["tt.divisibility", 16]] for name in aligned if name not in ("count", "size")},
    )
    binary = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        usage = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, stack = (re.search(rf"{name}:(\d+)", usage) for name in ("REG", "STACK"))
    assert registers is not None and stack is not None, usage
    return int(registers[1]), int(stack[1])


def main() -> int:
    sizes = dict.fromkeys(("count", "width", "out_width", "size"), "i32")
    spilling = 0
    for capability in CAPABILITIES:
        rows = [("radiance_field", _render_kernel, "fp32", FIELD, 4)]
        rows += [("sparse_conv fp32", _conv3_kernel, "fp32", NARROW, 4)]
        rows += [(f"sparse_conv {dtype}", _conv3_kernel, dtype, WIDE, 8) for dtype in ("fp16", "bf16")]
        for name, kernel, dtype, constants, warps in rows:
            tensors = ("image", "vectors", "density", "colour", "offsets", "feats", "weight", "bias", "out")
            types = sizes | dict.fromkeys(tensors, f"*{dtype}") | dict.fromkeys(("table", "neighbours"), "*i32")
            registers, stack = compiled(kernel, capability, types, constants, warps)
            print(f"{name} sm_{capability}: {registers} registers, {stack} bytes spilled")
            spilling += stack > SPILL_LIMIT
    return spilling


if __name__ == "__main__":
    sys.exit(main())
