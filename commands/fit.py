"""`dtrap fit`: train and test every method on every episode that has no result yet."""

from __future__ import annotations

from rich.console import Console

from ..protocol.runner import ProtocolRun


def fit(arguments: list[str], console: Console) -> int:
    """Run `dtrap fit`; see `ProtocolRun`."""
    return ProtocolRun(arguments, console).run()
