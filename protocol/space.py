"""Whether the files of a run fit on the disk, before it begins."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from rich.filesize import decimal
from torch.nn.parameter import is_lazy

from ..datamodules.few_shot import FewShotDataModule
from ..errors import DtrapError
from ..lightning_modules import FewShotClassifier
from .features import feature_bytes
from .predictions import keeps_predictions, predictions_bytes
from .run_folder import RunFolder
from .settings import ProtocolSettings

# A checkpoint holds the values and two moments of Adam, and the former one is kept until the new one is complete.
CHECKPOINT_COPIES = 2 * 3


def check_space(
    folder: RunFolder,
    modules: Mapping[str, FewShotClassifier],
    missing: Mapping[str, list[int]],
    *,
    save_adapters: bool,
    checkpoints: bool,
    overwrite: bool,
    others: Mapping[str, int],
) -> None:
    """Raise a DtrapError if the files of the missing episodes need more than the free space.

    Args:
        folder: The run folder, which exists.
        modules: The module of each method; one that trains the same as another has none and saves nothing.
        missing: The episodes that each method has yet to run.
        save_adapters: Whether the run saves adapters.
        checkpoints: Whether the run writes checkpoints.
        overwrite: Whether the files of an earlier run are deleted first.
        others: Bytes of the other files by kind, which names their option; see `sizes_of_files`.
    """
    sizes = {name: adapter_bytes(modules[name]) for name, episodes in missing.items() if episodes and name in modules}
    adapters = sum(size * len(missing[name]) for name, size in sizes.items()) if save_adapters else 0
    resumed = CHECKPOINT_COPIES * max(sizes.values(), default=0) if checkpoints else 0
    free = shutil.disk_usage(folder.path).free
    if overwrite:
        free += sum(map(_bytes_of, (folder.adapters, folder.predictions, folder.features, folder.checkpoints)))
    needed = adapters + sum(others.values()) + resumed
    if needed <= free:
        return
    parts = []
    if adapters:
        parts.append(f"{sum(len(missing[name]) for name in sizes)} adapters of {decimal(max(sizes.values()))}")
    parts += [f"{kind} of {decimal(size)}" for kind, size in others.items() if size]
    if resumed:
        parts.append(f"checkpoints of {decimal(resumed // 2)}")
    options = [f"--protocol.save_{kind}" for kind, size in {"adapters": adapters, **others}.items() if size]
    without = f", leave out {' and '.join(options)}" if options else ""
    raise DtrapError(
        f"{folder.path}: the run would write {' and '.join(parts)}, {decimal(needed)} in all, but "
        f"{decimal(free)} are free there. Free space{without}, or choose a folder on another disk with "
        "--protocol.folder."
    )


def sizes_of_files(
    settings: ProtocolSettings,
    data: FewShotDataModule,
    modules: Mapping[str, FewShotClassifier],
    missing: Mapping[str, list[int]],
) -> dict[str, int]:
    """Return about how many bytes the predictions and features of the missing episodes need."""
    own = {name: episodes for name, episodes in missing.items() if name in modules}
    predictions = keeps_predictions(settings, data)
    kept = {name: sum(episode < settings.save_features for episode in episodes) for name, episodes in own.items()}
    return {
        "predictions": predictions_bytes(data) * sum(map(len, own.values())) if predictions else 0,
        "features": sum(feature_bytes(modules[name], data) * count for name, count in kept.items() if count),
    }


def adapter_bytes(module: FewShotClassifier) -> int:
    """Return the size of the values that an adapter file holds; those that a task creates do not count yet."""
    values = module.tuner.adapter_state().values()
    return sum(value.numel() * value.element_size() for value in values if not is_lazy(value))


def _bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*") if path.is_file())
