"""A fake background-removal model in ONNX format whose result a test can predict."""

from __future__ import annotations

from pathlib import Path


def write_brightness_model(path: Path, *, side: int = 320) -> None:
    """Write a model with the input and output shapes of u2net, or others, that marks bright pixels as the subject."""
    import onnx

    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["image"], ["alpha"], axes=[1], keepdims=1)],
        "brightness",
        [helper.make_tensor_value_info("image", kind, [1, 3, side, side])],
        [helper.make_tensor_value_info("alpha", kind, [1, 1, side, side])],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), str(path))
