"""Versions of what is installed, and the extras."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from ... import __version__

LIBRARIES = ("torch", "torchvision", "lightning", "open_clip_torch", "transformers", "timm", "peft", "torchmetrics")
# Distributions that an extra of dtrap brings, or that an option needs.
EXTRAS = {
    "report": ("scikit-learn",),
    "ray": ("ray",),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "parquet": ("pyarrow",),
    "dashboard": ("wandb-workspaces",),
}
OTHERS = {"TensorBoard": "tensorboard", "MLflow": "mlflow", "HEIC images": "pillow-heif"}
# Packages that install the same module as another one.
_ALSO = {"mlflow": ("mlflow-skinny",), "tensorboard": ("tensorboardX",)}


def installed(name: str) -> str | None:
    """Return the version of a distribution, None if it is not installed."""
    for each in (name, *_ALSO.get(name, ())):
        try:
            return version(each)
        except PackageNotFoundError:
            continue
    return None


def versions() -> dict[str, str]:
    """Return the versions of Python, dtrap and the libraries that decide about its numbers."""
    found = {name: installed(name) or "not installed" for name in LIBRARIES}
    return {"Python": platform.python_version(), "dtrap": __version__, **found}


def extras() -> dict[str, str]:
    """Return "installed" or the command that installs it, for each extra of dtrap and what else options may need."""
    found = {}
    for extra, names in EXTRAS.items():
        missing = [name for name in names if installed(name) is None]
        found[f"dtrap[{extra}]"] = "installed" if not missing else f"not installed: pip install 'dtrap[{extra}]'"
    for title, name in OTHERS.items():
        found[title] = "installed" if installed(name) else f"not installed: pip install {name}"
    return found
