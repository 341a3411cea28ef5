"""Check a user's optimizer before a training starts with it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DtrapError, first_line


def check_optimizer(optimizer: Callable[..., Any], parameters: list[nn.Parameter]) -> None:
    """Create the optimizer and check its numbers.

    Args:
        optimizer: Creates it for a list of parameters.
        parameters: Those that will be trained; a placeholder if there are none yet.

    Raises:
        DtrapError: It cannot be created, a number of it is not finite, or every rate is 0.
    """
    try:
        groups = optimizer(parameters or [nn.Parameter(torch.zeros(1))]).param_groups
    except (TypeError, ValueError) as error:
        raise DtrapError(f"the optimizer cannot be created: {first_line(error)}. Correct its init_args.") from error
    for group in groups:
        for name, value in group.items():
            for number in value if isinstance(value, tuple | list) else [value]:
                odd = isinstance(number, float | Tensor) and name != "params" and not math.isfinite(float(number))
                if odd:
                    raise DtrapError(
                        f"optimizer: {name} is {value}; expected a finite number. Set --model.optimizer.{name}."
                    )
    if all(float(group.get("lr", 1)) == 0 for group in groups):
        raise DtrapError("optimizer: lr is 0, so that nothing would be trained. Set --model.optimizer.lr.")
