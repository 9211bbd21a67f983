"""A device that is not there: tensors that hold their numbers on the processor and claim to lie elsewhere.

Operations that mix them with tensors of the processor are refused as CUDA refuses them, so that a forgotten `.to` or
`device=` is found where there is no accelerator. The numbers are the processor's own, bit for bit.

    with fake_device() as device:  # a torch.device, which `--device` knows too
        model.to(device)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NoReturn
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

from tessella.core import device as devices

KIND = "meta"
"""The kind of device that is claimed: one that every PyTorch knows, and that has no kernels of its own in the way."""

_aten = torch.ops.aten
_COPIES = {_aten._to_copy.default, _aten.copy_.default, _aten.to.device, _aten.to.other, _aten.type_as.default}
_INDEXING = {  # indices and masks may lie on the processor
    _aten.index.Tensor, _aten.index_put_.default, _aten.index_put.default, _aten._index_put_impl_.default,
}  # fmt: skip


class OnFake(Tensor):
    """A tensor that claims to lie on the fake device; `held` has its numbers."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> OnFake:
        how = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype, "device": KIND}
        with torch.inference_mode(False):  # or it could be no view of a tensor from outside that mode
            return Tensor._make_wrapper_subclass(cls, held.shape, **how)  # type: ignore[attr-defined]

    def __init__(self, held: Tensor) -> None:
        self.held = held

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"OnFake({self.held})"

    def tolist(self) -> Any:
        return self.held.tolist()

    def new_tensor(self, data: Any, **options: Any) -> Tensor:
        return torch.tensor(data, **{"dtype": self.dtype, "device": self.device, **options})

    def numpy(self, *, force: bool = False) -> NoReturn:
        raise TypeError("can't convert a tensor of the fake device to numpy: use Tensor.cpu() first")

    def __array__(self, *_: Any, **__: Any) -> NoReturn:
        self.numpy()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatch(func, args, kwargs or {}, float64=True)


class FakeDevice(TorchDispatchMode):
    """While this is active, the fake device is there.

    Args:
        float64: whether it has double precision, which Apple's GPUs have not.
    """

    def __init__(self, *, float64: bool) -> None:
        super().__init__()
        self.float64 = float64

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatch(func, args, kwargs or {}, float64=self.float64)


def _dispatch(func: Any, args: Any, kwargs: Any, *, float64: bool) -> Any:
    tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
    fake = [t for t in tensors if isinstance(t, OnFake)]
    assert all(isinstance(t, OnFake) or not t.is_meta for t in tensors), f"{func} got a tensor without numbers"
    wanted = kwargs.get("device")
    if func is _aten.to.device:  # this and the next are seen in inference mode alone
        there = torch.device(args[1]).type == KIND
        args = (args[0], torch.device("cpu"), *args[2:])
    elif func in (_aten.to.other, _aten.type_as.default):
        there = isinstance(args[1], OnFake)
    elif func is _aten.copy_.default:
        there = isinstance(args[0], OnFake)
    elif wanted is not None:
        there = torch.device(wanted).type == KIND
        kwargs = {**kwargs, "device": "cpu"}
    else:
        there = bool(fake)
    if fake and func not in _COPIES:
        first = args[0] if func in _INDEXING else None
        apart = [t for t in tensors if not isinstance(t, OnFake) and t.dim()]
        if isinstance(first, OnFake):
            apart = [t for t in apart if t is (args[2] if len(args) > 2 else None)]
        if apart:
            raise RuntimeError(f"{func}: expected all tensors on the same device, but found the fake one and the cpu")
    held_args, held_kwargs = tree_map_only(OnFake, lambda t: t.held, (args, kwargs))
    out = func(*held_args, **held_kwargs)
    if not there:
        return out
    known = {id(t.held): t for t in fake}  # what is written in place stays the tensor that it was
    out = tree_map_only(Tensor, lambda t: known[id(t)] if id(t) in known else OnFake(t), out)
    if not float64 and any(t.dtype == torch.float64 for t in tree_flatten(out)[0] if isinstance(t, Tensor)):
        raise TypeError(f"{func}: the fake device has no float64")
    return out


@contextmanager
def fake_device(*, float64: bool = True) -> Iterator[torch.device]:
    """Let there be the fake device, the only one besides the processor, and the best."""
    generator, autocast = torch.Generator, torch.autocast
    enabled, tensor = torch.is_autocast_enabled, torch.tensor

    def made(data: Any, *, device: Any = None, **options: Any) -> Tensor:
        return tensor(data, **options).to(device)  # at once on that device it would have no numbers

    class Anywhere(generator):  # a type, for annotations
        def __new__(cls, device: Any = "cpu") -> Any:
            return generator("cpu")

    def is_enabled(kind: str | None = None) -> bool:
        return kind != KIND and (enabled() if kind is None else enabled(kind))

    with (
        mock.patch.object(devices, "ACCELERATORS", (KIND,)),
        mock.patch.object(devices, "_count", lambda kind: int(kind == KIND)),
        mock.patch.object(devices, "has_float64", lambda device: float64 or device.type != KIND),
        mock.patch.object(torch, "Generator", Anywhere),
        mock.patch.object(
            torch, "autocast", lambda kind, *a, **k: nullcontext() if kind == KIND else autocast(kind, *a, **k)
        ),
        mock.patch.object(torch, "tensor", made),
        mock.patch.object(torch, "as_tensor", lambda data, **o: data if isinstance(data, Tensor) else made(data, **o)),
        mock.patch.object(torch, "is_autocast_enabled", is_enabled),
        FakeDevice(float64=float64),
    ):
        yield torch.device(KIND)
