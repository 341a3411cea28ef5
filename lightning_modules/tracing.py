"""Whether tensors outlive the call that computed them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils import _python_dispatch


def can_be_kept(*tensors: Tensor) -> bool:
    """Return whether tensors have values of their own: not while torch traces, and not within `torch.func`.

    What `torch.export`, `torch.compile`, `torch.jit.trace`, `make_fx`, a `FakeTensorMode` or a function transform
    passes through the model stands for other values, or for none, and must not be cached or examined.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    # Private in torch, which has no public question for modes such as make_fx's and for function transforms.
    if _python_dispatch._get_current_dispatch_mode_stack() or torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    return all(type(tensor) in (Tensor, Parameter) for tensor in tensors)
