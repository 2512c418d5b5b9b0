"""A device that is none: its tensors lie on the processor, and what mixes them with others raises as a GPU does.

Networks with strided 1×1 convolutions of few channels are not for it: what spares a processor these (`models/placing`)
takes them for a GPU's.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

THERE = torch.device("xpu", 0)
COPIES = (Tensor.copy_, Tensor.data.__set__, torch._has_compatible_shallow_copy_type)  # between devices, too
INDEXED = (Tensor.__getitem__, Tensor.__setitem__)  # by indices of the processor, too
PYTHONS = (Tensor.numpy, Tensor.__array__)


class Elsewhere(TorchFunctionMode):
    """Inside, tensors `moved` lie there, and so do results of calls on them."""

    _there: ClassVar[dict[int, StorageWeakRef]] = {}  # of all: constants are remembered by their device

    def moved(self, value: Any) -> Any:
        """A network, in place, or a tensor."""
        tensors = [*value.parameters(), *value.buffers()] if isinstance(value, nn.Module) else [value]
        for tensor in tensors:
            self._mark(tensor)
        return value

    def _mark(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self._there[storage._cdata] = StorageWeakRef(storage)

    def is_there(self, tensor: Tensor) -> bool:
        with torch._C.DisableTorchFunction():
            known = self._there.get(tensor.untyped_storage()._cdata)
        return known is not None and not known.expired()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func == Tensor.device.__get__:
            return THERE if self.is_there(args[0]) else func(*args)
        if func in (torch.device, torch._C._nn._parse_to):  # which only read it
            return func(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        devices = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.device)]
        there = any(map(self.is_there, tensors))
        if func is Tensor.cpu or devices or (func is Tensor.to and len(tensors) == 2):
            there = devices[0] == THERE if devices else func is Tensor.to and self.is_there(tensors[1])
            args, kwargs = tree_map(lambda leaf: torch.device("cpu") if leaf == THERE else leaf, (args, kwargs))
            out = func(*args, **kwargs)
            if isinstance(out, Tensor) and tensors and self.is_there(tensors[0]) != there and out is tensors[0]:
                out = out.clone()
        else:
            self._refuse_mixed(func, args, tensors)
            out = func(*args, **kwargs)
        if there:
            with torch._C.DisableTorchFunction():
                for tensor in tree_leaves(out):
                    if isinstance(tensor, Tensor):
                        self._mark(tensor)
        return out

    def _refuse_mixed(self, func: Any, args: Any, tensors: list[Tensor]) -> None:
        there = [self.is_there(tensor) for tensor in tensors]
        if func in PYTHONS and any(there):
            raise TypeError("can't convert a tensor that lies elsewhere to numpy")
        if func in COPIES or (func in INDEXED and there[0]):
            return
        if any(there) and not all(
            is_there or not tensor.dim() for is_there, tensor in zip(there, tensors, strict=True)
        ):
            raise RuntimeError(f"{getattr(func, '__name__', func)} got tensors on two devices ({there})")
