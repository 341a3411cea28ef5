"""Whether a device computes, and in which precision."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from ...errors import first_line
from ..precision import default_precision

WIDTH, TOKENS, SCALE = 64, 17, 1024.0
# The largest error relative to float64 that a sound device has here; on a CPU it is 2e-7, 1e-3 and 2e-4.
WORST = {"32-true": 1e-5, "bf16-mixed": 0.02, "16-mixed": 0.005}
_TYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


@dataclass(frozen=True)
class Trial:
    """What a small attention block gave on a device.

    Attributes:
        precision: Lightning's name of the precision.
        error: Largest difference of outputs and gradients from float64 on the CPU, relative to their largest value;
            None where the device refused.
        refusal: Its message then.
        default: Whether a run takes this precision unless it is given another one.
    """

    precision: str
    error: float | None
    refusal: str
    default: bool

    @property
    def works(self) -> bool:
        """Whether the numbers are as near to float64 as they should be."""
        return self.error is not None and self.error <= WORST[self.precision]


def try_precisions(device: torch.device) -> list[Trial]:
    """Compute a small attention block and its gradients on a device in each precision."""
    expected = _outcome(torch.device("cpu"), torch.float64, None)
    trials = []
    for precision in WORST:
        try:
            found = _outcome(device, torch.float32, _TYPES.get(precision))
            error, refusal = _error(found, expected), ""
        except (RuntimeError, NotImplementedError) as failure:
            error, refusal = None, first_line(failure)
        trials.append(Trial(precision, error, refusal, precision == default_precision(device)))
    return trials


def _outcome(device: torch.device, dtype: torch.dtype, low: torch.dtype | None) -> list[torch.Tensor]:
    """Return the output and all gradients of the block, as float64 on the CPU."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        block = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, dropout=0.0, batch_first=True, dtype=torch.float64)
    block = block.to(device, dtype)
    tokens = torch.randn(2, TOKENS, WIDTH, generator=generator, dtype=torch.float64).to(device, dtype)
    with torch.autocast(device.type, low) if low is not None else nullcontext():
        output = block(tokens)
        loss = (output.float() if low is not None else output).square().mean()
    # Scaled as a gradient scaler does it: small gradients would be zero in float16.
    (loss * SCALE).backward()
    gradients = [parameter.grad.flatten() / SCALE for parameter in block.parameters() if parameter.grad is not None]
    return [tensor.detach().cpu().double() for tensor in (output, torch.cat(gradients))]


def _error(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """Return the largest relative difference; infinite where a number is not finite."""
    if not all(tensor.isfinite().all() for tensor in found):
        return float("inf")
    pairs = zip(found, expected, strict=True)
    return max(float((here - there).abs().max() / there.abs().max()) for here, there in pairs)


def describe(device: torch.device) -> str:
    """Return the name of a device, with its memory or threads."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    return f"{device.type.upper()}, {torch.get_num_threads()} threads" if device.type == "cpu" else device.type.upper()
