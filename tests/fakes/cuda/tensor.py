"""The tensor that says cuda:0, and what each operation on it counts as.

Every operation reaches `Device.run` through torch's dispatcher. It checks the devices of the arguments, counts,
computes with the tensors inside, and wraps the results. What torch's C++ would do before the dispatcher, for a device
that this build lacks, are methods of `DeviceTensor`.

A tensor without values has a meta tensor inside. Operations on it have results without values, and cost nothing, so
that a model of its real size can be counted; what needs a value of it raises an error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry

from tests.fakes.cuda.counts import Counts
from tests.fakes.cuda.kernels import FLOPS_ONLY_ON_A_GPU, ONLY_ON_A_GPU, fused_attention

CUDA, CPU, META = torch.device("cuda", 0), torch.device("cpu"), torch.device("meta")
NO_KERNEL = frozenset(
    [
        "_reshape_alias",
        "_unsafe_view",
        "alias",
        "as_strided",
        "chunk",
        "detach",
        "diagonal",
        "empty",
        "empty_like",
        "empty_strided",
        "expand",
        "flatten",
        "is_pinned",
        "is_same_size",
        "lift_fresh",
        "movedim",
        "narrow",
        "new_empty",
        "new_empty_strided",
        "permute",
        "reshape",
        "select",
        "slice",
        "split",
        "split_with_sizes",
        "squeeze",
        "swapaxes",
        "t",
        "transpose",
        "unbind",
        "unfold",
        "unsqueeze",
        "view",
        "view_as",
        "view_as_complex",
        "view_as_real",
    ]
)
"""Operations that only describe memory in another way, or reserve it."""
WAITS = frozenset(
    [
        "_local_scalar_dense",
        "_unique2",
        "bincount",
        "equal",
        "is_nonzero",
        "masked_select",
        "nonzero",
        "repeat_interleave",
        "unique_consecutive",
        "unique_dim",
    ]
)
"""Operations whose result, or its size, the host has to read; `repeat_interleave` with a tensor of numbers."""
INDEXING = frozenset(["index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"])
COPIES = ("_to_copy", "copy_")
MASKS = (torch.bool, torch.uint8)
PINNED = "_is_pinned_for_the_device"


class Device:
    """Computes and counts; there is one at a time."""

    def __init__(self, counts: Counts) -> None:
        self.counts = counts

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One operation of the dispatcher.

        Raises:
            RuntimeError: it mixes tensors of two devices.
        """
        name = func._schema.name.split("::")[1]
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        ours = [leaf for leaf in leaves if isinstance(leaf, DeviceTensor)]
        hosts = [leaf for leaf in leaves if not isinstance(leaf, DeviceTensor)]
        wanted = kwargs.get("device")
        ends_here = bool(ours) if wanted is None else torch.device(wanted).type == "cuda"
        pins = bool(kwargs.get("pin_memory"))
        kwargs = {key: value for key, value in kwargs.items() if key != "pin_memory"}
        if wanted is not None and (ends_here or torch.device(wanted).type == "cpu"):
            kwargs["device"] = CPU
        if name in COPIES:
            ends_here = self._copy(name, args, kwargs, ours, hosts, ends_here)
        elif ours and any(host.dim() for host in hosts):
            self._check_hosts(func, name, args)
        out = self._compute(func, name, args, kwargs, ours)
        if pins and isinstance(out, Tensor):
            setattr(out, PINNED, True)
        if ends_here:
            out = self._wrapped(out, ours)
        if (ends_here or ours) and name not in NO_KERNEL:
            self._count(func, name, args, kwargs, out)
        return out

    def _copy(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], ours: Sequence[Tensor], hosts: Sequence[Tensor],
        ends_here: bool,
    ) -> bool:  # fmt: skip
        """Count a copy between the devices; returns whether it ends on this one."""
        target, source = (args[0], args[1]) if name == "copy_" else (None, args[0])
        if target is not None:
            ends_here = isinstance(target, DeviceTensor)
            is_asynchronous = bool(args[2] if len(args) > 2 else kwargs.get("non_blocking"))
        else:
            is_asynchronous = bool(kwargs.get("non_blocking"))
        if ends_here == isinstance(source, DeviceTensor):
            return ends_here
        host = source if ends_here else target
        if not (is_asynchronous and host is not None and getattr(host, PINNED, False)):
            self.counts.add_wait("copy to the device" if ends_here else "copy to the host")
        return ends_here

    def _check_hosts(self, func: Any, name: str, args: tuple[Any, ...]) -> None:
        if name in INDEXING and isinstance(args[0], DeviceTensor):
            self.counts.add_wait("index from the host")
            return
        raise RuntimeError(f"Expected all tensors to be on the same device, but found cuda:0 and cpu: {func}")

    def _count(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        formula = FLOPS_ONLY_ON_A_GPU.get(name, flop_registry.get(func._overloadpacket))
        flops = 0
        if formula is not None:
            bare = tree_map(_without_wrapper, (args, kwargs, out))
            with torch._C._DisableTorchDispatch():
                flops = int(formula(*bare[0], **bare[1], out_val=bare[2]))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)]
        self._launch(name, tensors, flops=flops)
        if name in WAITS and not (name == "repeat_interleave" and isinstance(args[0], int)):
            self.counts.add_wait(name)
        elif name in INDEXING:
            self.count_masks(tree_leaves(args[1]))

    def count_masks(self, indices: Sequence[Any]) -> None:
        """Count a wait if an index is a mask, whose number of elements sets the size of the result."""
        if any(isinstance(index, Tensor) and index.dtype in MASKS for index in indices):
            self.counts.add_wait("mask")

    def _compute(
        self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], ours: Sequence[DeviceTensor]
    ) -> Any:
        if any(tensor.inner.is_meta for tensor in ours):
            if name in INDEXING:
                args = (args[0], _as_numbers(args[1]), *args[2:])
            if name.endswith("_") and isinstance(args[0], DeviceTensor):
                args[0].forget_values()
            inner: Callable[[Any], Any] = _meta_of
            if name == "zeros_like":  # its values are known
                kwargs = {**kwargs, "device": CPU}
            elif kwargs.get("device") == CPU:
                kwargs = {**kwargs, "device": META}
        else:
            inner = _without_wrapper
        bare = tree_map(inner, (args, kwargs))
        with torch._C._DisableTorchDispatch():
            return ONLY_ON_A_GPU.get(name, func)(*bare[0], **bare[1])

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **options: Any) -> Tensor:
        """Attention in one kernel, which is chosen before the dispatcher; a mask is first made into a bias by two."""
        convert = _meta_of if any(_without_wrapper(x).is_meta for x in (q, k, v)) else _without_wrapper
        with torch._C._DisableTorchDispatch():
            given = (convert(x) for x in (q, k, v))
            inner = fused_attention(*given, None if mask is None else convert(mask), **options)
        out = DeviceTensor(inner, self)
        flops = 4 * q.numel() * k.shape[-2]  # two products of every query with every key
        self._launch("scaled_dot_product_attention", [q, k, v, out], flops=flops)
        for _ in range(0 if mask is None else 2):
            self.counts.add_launch("mask to bias", moved_bytes=3 * out.shape[0] * q.shape[-2] * k.shape[-2])
        return out

    def one_kernel(
        self, name: str, function: Callable[..., Tensor], x: DeviceTensor, *args: Any, flops: int = 0
    ) -> Tensor:
        """A function of the first tensor that torch computes in one kernel here, and in several on a CPU."""
        convert = _meta_of if x.inner.is_meta else _without_wrapper
        with torch._C._DisableTorchDispatch():
            inner = function(convert(x), *(convert(arg) for arg in args))
        out = DeviceTensor(inner, self)
        self._launch(name, [leaf for leaf in (x, *args, out) if isinstance(leaf, Tensor)], flops=flops)
        return out

    def _launch(self, name: str, tensors: Sequence[Tensor], *, flops: int) -> None:
        """Count a kernel with these inputs and outputs."""
        precision = next((str(tensor.dtype)[6:] for tensor in tensors if tensor.is_floating_point()), "")
        moved = sum(touched_bytes(name, tensors))
        self.counts.add_launch(name, flops=flops, moved_bytes=moved, precision=precision)

    def _wrapped(self, out: Any, ours: Sequence[DeviceTensor]) -> Any:
        known = {id(tensor.inner): tensor for tensor in ours}

        def wrap(value: Any) -> Any:
            if not isinstance(value, Tensor) or isinstance(value, DeviceTensor):
                return value
            return known[id(value)] if id(value) in known else DeviceTensor(value, self)

        return tree_map(wrap, out)


class DeviceTensor(torch.Tensor):
    """Says cuda:0.

    Attributes:
        inner: holds the values on the CPU; a meta tensor where there are none.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    inner: Tensor
    owner: Device

    @staticmethod
    def __new__(cls, inner: Tensor, owner: Device) -> DeviceTensor:
        make: Any = torch.Tensor._make_wrapper_subclass
        made = make(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            layout=inner.layout, device=CUDA,
        )  # fmt: skip
        made.inner, made.owner = inner, owner
        owner.counts.memory.hold(made, inner)
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        owner = next(leaf.owner for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, DeviceTensor))
        return owner.run(func, args, kwargs or {})

    def forget_values(self) -> None:
        """Make this a tensor without values."""
        if not self.inner.is_meta:
            self.inner = _meta_of(self)
            self.owner.counts.memory.replace(self.inner)

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor first.")

    def tolist(self) -> Any:
        self.owner.counts.add_wait("tolist")
        return self.inner.tolist()

    def item(self) -> Any:
        self.owner.counts.add_wait("item")
        return self.inner.item()

    def __bool__(self) -> bool:
        return bool(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __index__(self) -> int:
        return int(self.item())

    def __invert__(self) -> Tensor:
        return torch.bitwise_not(self)

    def __deepcopy__(self, memo: Any) -> DeviceTensor:
        return DeviceTensor(self.inner.clone(), self.owner)

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"DeviceTensor({self.inner!r})"

    def contiguous(self, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
        if self.inner.is_contiguous(memory_format=memory_format):
            return self
        return self.clone(memory_format=memory_format)

    def nonzero(self, *, as_tuple: bool = False) -> Any:
        found = torch.ops.aten.nonzero(self)
        return found.unbind(1) if as_tuple else found

    def __getitem__(self, index: Any) -> Tensor:
        return self._indexed(index, lambda inner, plain: DeviceTensor(inner[plain], self.owner))

    def __setitem__(self, index: Any, value: Any) -> None:
        if isinstance(value, Tensor) and not isinstance(value, DeviceTensor) and value.dim():
            self.owner.counts.add_wait("set from the host")
        if isinstance(value, DeviceTensor) and value.inner.is_meta and not self.inner.is_meta:
            self.forget_values()

        def store(inner: Tensor, plain: Any) -> DeviceTensor:
            given = _meta_of(value) if inner.is_meta else _without_wrapper(value)
            inner[plain] = given
            return self

        self._indexed(index, store, is_write=True)

    def _indexed(
        self, index: Any, use: Callable[[Tensor, Any], DeviceTensor], *, is_write: bool = False
    ) -> DeviceTensor:
        """Use an index on the tensor inside: views cost nothing, tensors and lists are a kernel."""
        counts = self.owner.counts
        parts = index if isinstance(index, tuple) else (index,)
        tensors = [part for part in parts if isinstance(part, Tensor)]
        for part in tensors:
            if part.dim() == 0:
                counts.add_wait("index by a tensor of no dimension")
            elif not isinstance(part, DeviceTensor):
                counts.add_wait("index from the host")
        if any(isinstance(part, list) for part in parts):
            counts.add_wait("index from the host")
        self.owner.count_masks([part for part in tensors if part.dim()])
        convert: Callable[[Any], Any] = _without_wrapper
        if self.inner.is_meta:
            parts, convert = tuple(_as_numbers(parts)), _meta_of
        plain = tuple(convert(part) for part in parts)
        with torch._C._DisableTorchDispatch():
            out = use(self.inner, plain if isinstance(index, tuple) or len(plain) != 1 else plain[0])
        if is_write or tensors or any(isinstance(part, list) for part in parts):
            moved = 2 * out.inner.nbytes if not is_write else 0
            counts.add_launch("index_put_" if is_write else "index", moved_bytes=moved)
        return out


class Dispatch(TorchDispatchMode):
    """Sends operations without a tensor of the device to it too: those that make one."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.device.run(func, args, kwargs or {})


def touched_bytes(name: str, tensors: Sequence[Tensor]) -> list[int]:
    """Bytes that a kernel reads and writes of each tensor; a gather reads of its source what it returns."""
    sizes = [tensor.numel() * tensor.element_size() for tensor in tensors]
    if name in ("index", "index_select", "gather", "embedding_bag", "_embedding_bag", "_unsafe_index") and sizes:
        sizes[0] = min(sizes[0], sizes[-1])
    return sizes


def _without_wrapper(value: Any) -> Any:
    return value.inner if isinstance(value, DeviceTensor) else value


def _meta_of(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    inner = _without_wrapper(value)
    with torch._C._DisableTorchDispatch():
        if inner.is_meta:
            return inner
        return torch.empty_strided(inner.size(), inner.stride(), dtype=inner.dtype, device=META)


def _as_numbers(indices: Sequence[Any]) -> list[Any]:
    """Replace masks by the numbers of their elements, which a meta tensor cannot be indexed without."""
    found: list[Any] = []
    for index in indices:
        inner = _without_wrapper(index)
        if isinstance(inner, Tensor) and inner.dtype in MASKS:
            with torch._C._DisableTorchDispatch():
                found += list(cast(Tensor, inner).nonzero(as_tuple=True))
        else:
            found.append(index)
    return found
