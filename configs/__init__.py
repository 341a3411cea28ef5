"""The shipped configs and how a config's name is found."""

from __future__ import annotations

from pathlib import Path

from ..errors import DtrapError, nearest

SHIPPED = Path(__file__).parent


def shipped_configs() -> list[str]:
    """Names of all shipped configs, those of data sets first, then the overlays by folder."""
    names = [path.relative_to(SHIPPED).as_posix() for path in SHIPPED.rglob("*.yaml")]
    return sorted(names, key=lambda name: (name.count("/"), name))


def find_config(name: str) -> str:
    """Path of a config: a file of that name from here, else the shipped one.

    Raises:
        DtrapError: There is neither.
    """
    for candidate in (Path(name), SHIPPED / name, SHIPPED / f"{name}.yaml"):
        if candidate.is_file():
            return str(candidate)
    raise DtrapError(
        f"config '{name}' not found: neither a file here ({Path.cwd()}) nor a shipped config."
        f"{nearest(name, shipped_configs())} `dtrap configs` lists the shipped ones."
    )


def title_of(name: str) -> str:
    """First comment line of a shipped config, which says what it is."""
    first = (SHIPPED / name).read_text(encoding="utf-8").split("\n", 1)[0]
    return first.removeprefix("#").strip()
