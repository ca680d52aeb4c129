"""Floating-point operations of what PyTorch runs."""

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class FlopCounter(TorchDispatchMode):
    """
    Counts by PyTorch's own formulas. PyTorch's own counter also notes which module an operation belongs to, by hooks that
    ``torch.autograd.grad`` does not bear.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        count = flop_registry.get(func.overloadpacket)
        if count is None:
            with self:  # in inference mode, operations arrive that consist of others
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        if count is not None:
            self.total += count(*args, **kwargs, out_val=result)
        return result
