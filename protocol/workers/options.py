"""The option `--protocol.workers`: how many worker processes, or the address of a Ray cluster."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from ...errors import DtrapError

AUTO = "auto"
EXPECTED = "a number of at least 1, auto, or the address of a Ray cluster such as host:6379 or ray://host:10001"


@dataclass(frozen=True)
class Workers:
    """What `--protocol.workers` asks for.

    Attributes:
        count: Number of worker processes; None for one per GPU, or per few cores where there is none.
        address: Address of a running Ray cluster; None for this machine, unless RAY_ADDRESS names a cluster.
    """

    count: int | None = None
    address: str | None = None


def parse_workers(value: str | int) -> Workers:
    """Return what a value of `--protocol.workers` asks for.

    Raises:
        DtrapError: It is neither a number, `auto` nor an address.
    """
    text = str(value).strip()
    if not isinstance(value, bool) and text.isascii() and text.isdigit() and int(text) >= 1:
        return Workers(count=int(text))
    if text == AUTO:
        return Workers()
    place = text.removeprefix("ray://")
    host, _, port = place.rpartition(":")
    if host and "/" not in place and " " not in place and port.isascii() and port.isdigit() and 0 < int(port) < 65536:
        return Workers(address=text)
    raise DtrapError(f"--protocol.workers is {value!r}; expected {EXPECTED}.")


def check_ray() -> None:
    """Raise a DtrapError if Ray is not installed; it is not imported."""
    try:
        found = find_spec("ray") is not None
    except ValueError:  # it is marked as missing in sys.modules
        found = False
    if not found:
        raise DtrapError(
            "--protocol.workers needs Ray, which is not installed. Install it with: pip install 'dtrap[ray]'"
        )
