"""One training step: ours, the authors' form, an earlier commit and a matrix product in turn."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch.utils.flop_counter import FlopCounterMode

from . import models
from .earlier import EarlierCommit
from .figures import Figure, Part, Report
from .measuring import Clock, NotRunError, product, timed
from .settings import Settings

MOST_STEPS = 100_000
# With bmm: in nn.MultiheadAttention torch turns the projection of a transposed input into a batched product.
COUNTED = ("convolution", "addmm", "mm", "bmm")


def count_gflop(counter: FlopCounterMode) -> float:
    """Return what convolutions and matrix products took; attention on a CPU is not counted by torch."""
    counts = counter.get_flop_counts().get("Global", {})
    names = {operator: str(operator).removeprefix("aten.").removesuffix("_backward") for operator in counts}
    return sum(flop for operator, flop in counts.items() if names[operator] in COUNTED) / 1e9


class Steps(Callback):
    """Times the steps of a fit and lets others act in between.

    The first step fills caches, in the second the operations are counted, and the others are timed in blocks.

    Args:
        settings: Device and size of a block.
        ready: Called before every block; false ends the run.
        done: Called after every block with the seconds of one step.
    """

    def __init__(self, settings: Settings, ready: Callable[[], bool], done: Callable[[float], None]) -> None:
        self.settings, self.ready, self.done = settings, ready, done
        self.gflop = 0.0
        self._clock = Clock(settings.device)

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        """Count the operations of the second step."""
        if batch_idx == 1:
            self._counter = FlopCounterMode(display=False)
            self._counter.__enter__()

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """End a block and begin the next; a step lasts until the end of the next one, with all that Lightning does."""
        if batch_idx == 1:
            self._counter.__exit__(None, None, None)
            self.gflop = count_gflop(self._counter)
        elif batch_idx >= 2 and (batch_idx - 1) % self.settings.block == 0:
            self._clock.__exit__()
            self.done(self._clock.seconds / self.settings.block)
        else:
            return
        if self.ready():
            self._clock.__enter__()
        else:
            trainer.should_stop = True


def run(
    settings: Settings,
    method: str,
    ready: Callable[[], bool],
    done: Callable[[float], None],
    precision: str | None = None,
) -> float:
    """Train as `dtrap fit` does; return the GFLOP of a step."""
    steps = Steps(settings, ready, done)
    data = models.Support(models.batch(settings), MOST_STEPS)
    models.trainer(settings, steps, precision=precision).fit(models.module(settings, method), datamodule=data)
    return steps.gflop


def serve(settings: Settings, method: str, replies: Any) -> None:
    """Make a block of steps for every line that comes in, and reply with its seconds; ends with the input."""
    reply = partial(print, file=replies, flush=True)

    def ready() -> bool:
        reply(json.dumps({"ready": True}))
        return bool(sys.stdin.readline())

    gflop = run(settings, method, ready, lambda seconds: reply(json.dumps({"seconds": seconds})))
    reply(json.dumps({"gflop": gflop}))


class Other(EarlierCommit):
    """The same steps by an earlier commit.

    Attributes:
        gflop: Of a step; known after `close`.
    """

    def __init__(self, settings: Settings, method: str) -> None:
        self.gflop = 0.0
        super().__init__(settings, "serve", method=method)

    def step(self) -> float:
        """Let it make a block of steps; return the seconds of one."""
        seconds = self.ask("go")["seconds"]
        self.read()
        return seconds

    def close(self) -> None:
        """End it."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        if self.process.poll() is None:
            self.gflop = self.read()["gflop"]
        self.process.wait()


@contextmanager
def earlier(settings: Settings, method: str) -> Iterator[Other | None]:
    """Give the earlier commit's process, if there is one to compare with."""
    if settings.before is None:
        yield None
        return
    other = Other(settings, method)
    try:
        yield other
    finally:
        other.close()


def measure(settings: Settings, report: Report, *, method: str) -> None:
    """Add a step's figures."""
    plain = models.plain_training(settings, method)
    plain.step()  # the first has no previous relations, and so no gradient through the plain views
    with FlopCounterMode(display=False) as counter:
        plain.step()
    multiply, product_gflop = product(settings.device, small=settings.tiny, dtype=_dtype(settings))
    ours: list[float] = []
    authors: list[float] = []
    before: list[float] = []
    products: list[float] = []
    with earlier(settings, method) as other:

        def done(seconds: float) -> None:
            ours.append(seconds)
            authors.append(timed(plain.step, settings.device, settings.block))
            products.extend(timed(multiply, settings.device, settings.block) for _ in range(1 + 10 // settings.repeats))
            if other is not None:
                before.append(other.step())

        gflop = run(settings, method, lambda: not settings.enough(len(ours)), done)
    name = f"step.{method}"
    rate = product_gflop / statistics.median(products)
    report.add(f"{name}.seconds", ours)
    report.add(f"{name}.gflop", gflop)
    report.add(f"{name}.authors_gflop", count_gflop(counter))
    report.add_ratios(f"{name}.authors", authors, ours)
    report.add_ratios(f"{name}.before", before, ours)
    if other is not None:
        report.add(f"{name}.before_gflop", other.gflop)
    report.add(f"{name}.rate", 100 * gflop / statistics.median(ours) / rate, f"matrix product {rate:,.0f} GFLOP/s")


def _dtype(settings: Settings) -> str:
    return {"16-mixed": "float16", "bf16-mixed": "bfloat16"}.get(settings.precision, "float32")


def measure_terms(settings: Settings, report: Report) -> None:
    """Add the share of L_ad and L_ra in a step: forward and backward on features, with both terms and without."""
    module = models.module(settings, "vision").to(settings.device)
    content = {name: column.to(settings.device) for name, column in models.batch(settings).items()}
    width, labels, ids = module.backbone.feature_dim, content["labels"], content["sample_id"]
    plain = (content["view"] == 0).nonzero().flatten()
    texts = torch.randn(models.WAY, width, device=settings.device)
    module.objective.start(0)

    def work(progress: float | None) -> None:
        from dtrap.lightning_modules.objective import PlainRows

        features = torch.randn(len(labels), width, device=settings.device, requires_grad=True)
        module.objective.set_stage(progress)
        rows = PlainRows(features[plain], labels[plain])
        module.objective(features, texts, labels, plain=rows, row_ids=ids)["total"].backward()

    times = 3 if settings.tiny else 200
    seconds: dict[float | None, list[float]] = {0.5: [], None: []}
    for progress in (0.5, None) * (1 + settings.repeats):
        work(progress)  # the first step of a stage has no previous relations
        seconds[progress].append(timed(partial(work, progress), settings.device, times))
    added = statistics.median(seconds[0.5][1:]) - statistics.median(seconds[None][1:])
    known = report.figures.get("step.vision.seconds")
    report.add("terms.seconds", 1000 * added)
    if known is None:
        raise NotRunError("the share needs the step's seconds: measure step.vision, too")
    report.add("terms.share", 100 * added / known["value"])


def profiled(settings: Settings, method: str, precision: str, blocks: int = 2) -> float:
    """Return the percentage of wall time in which a GPU does nothing."""
    from torch.profiler import ProfilerActivity, profile

    left = iter(range(blocks + 1))
    seconds: list[float] = []
    profiler = profile(activities=[ProfilerActivity.CUDA])

    def ready() -> bool:
        number = next(left, None)
        if number == 1:
            profiler.__enter__()
        elif number is None:
            profiler.__exit__(None, None, None)
        return number is not None

    run(settings, method, ready, seconds.append, precision)
    spans = sorted(
        (e.time_range.start, e.time_range.end) for e in profiler.events() or [] if e.device_type.name == "CUDA"
    )
    busy, end = 0.0, 0.0
    for start, stop in spans:  # kernels of several streams may overlap
        busy += max(stop - max(start, end), 0.0)
        end = max(end, stop)
    whole = sum(seconds[1:]) * settings.block * 1e6
    return 100 * (1 - busy / whole)


def _figures(method: str, text: str, authors: float | None = None, before: float | None = None) -> tuple[Figure, ...]:
    name, vision = f"step.{method}", method == "vision"
    return (
        Figure(f"{name}.seconds", f"{text}: one step", "s"),
        Figure(f"{name}.authors", f"{text}: times as fast as the authors' form", "times", authors),
        Figure(f"{name}.before", f"{text}: times as fast as the earlier commit", "times", before),
        Figure(f"{name}.gflop", f"{text}: convolutions and matrix products", "GFLOP", most=1575 if vision else None),
        Figure(f"{name}.authors_gflop", f"{text}: the same, authors' form", "GFLOP"),
        Figure(f"{name}.before_gflop", f"{text}: the same, earlier commit", "GFLOP"),
        Figure(f"{name}.rate", f"{text}: share of the matrix product's rate", "%", 90 if vision else None),
    )


PARTS = (
    Part("step.vision", partial(measure, method="vision"), _figures("vision", "LoRA, image tower", 2.2, 1.3)),
    Part("step.text", partial(measure, method="text"), _figures("text", "LoRA, text tower", before=3.8)),
    Part("step.both", partial(measure, method="both"), _figures("both", "LoRA, both towers")),
    Part("step.coop", partial(measure, method="coop"), _figures("coop", "CoOp, 16 tokens", before=2.2)),
    Part("step.maple", partial(measure, method="maple"), _figures("maple", "MaPLe")),
    Part(
        "terms",
        measure_terms,
        (
            Figure("terms.seconds", "L_ad and L_ra, forward and backward", "ms"),
            Figure("terms.share", "L_ad and L_ra: share of the LoRA step on the image tower", "%", most=1),
        ),
    ),
)
