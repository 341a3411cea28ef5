"""Start Ray on this machine or connect to a cluster, quietly, and end it again."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ...errors import DtrapError, first_line
from .options import Workers, check_ray

CORES_OF_A_WORKER = 4  # for "auto" without a GPU: more threads gain little, and every worker holds a backbone
LONGEST_SOCKET = 107  # bytes of the path of a Unix socket
SOCKET_BELOW = len("/dtrap_12345678/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store.1")
# Passed on to the workers of a cluster; those of this machine inherit all.
PASSED_ON = ("PYTHONPATH", "OMP_WAIT_POLICY", "CUBLAS_WORKSPACE_CONFIG", "TORCH_HOME", "XDG_CACHE_HOME", "WANDB_MODE")
PASSED_PREFIXES = ("HF_", "TRANSFORMERS_", "DTRAP_")


class Cluster:
    """A Ray cluster that is connected: this machine's own, which ends with it, or a running one.

    Attributes:
        own: Whether it was started here.
        connected: Whether it was connected here, not by the caller of a Python function.
    """

    def __init__(self, *, own: bool, connected: bool, folder: Path | None) -> None:
        self.own, self.connected, self._folder = own, connected, folder

    def resources(self) -> dict[str, float]:
        """Return the CPUs, GPUs and other resources of all nodes that are there now."""
        import ray

        return ray.cluster_resources()

    def close(self) -> None:
        """Disconnect; end the processes of an own cluster and delete its files."""
        import ray

        if not self.connected:
            return
        with _signals_kept():
            ray.shutdown()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def connect(wanted: Workers) -> Cluster:
    """Connect to the cluster of an address or of RAY_ADDRESS, or start one on this machine.

    Raises:
        DtrapError: Ray is not installed, does not start, or the cluster does not answer.
    """
    check_ray()
    local = wanted.address is None and os.environ.get("RAY_ADDRESS") in (None, "", "local")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no network calls
    if local and "ray" not in sys.modules:
        _set_token()
    ray = _imported()
    if ray.is_initialized() and wanted.address is None:
        return Cluster(own=False, connected=False, folder=None)
    address = None if local else wanted.address or os.environ["RAY_ADDRESS"]
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    folder = None
    if address is None:
        folder = _temporary_folder()
        # The loopback address: nobody else can reach the cluster, and no network is needed.
        options |= {"include_dashboard": False, "_temp_dir": str(folder), "_node_ip_address": "127.0.0.1"}
    else:
        names = [name for name in os.environ if name in PASSED_ON or name.startswith(PASSED_PREFIXES)]
        options["runtime_env"] = {"env_vars": {name: os.environ[name] for name in names}}
    try:
        with _signals_kept():
            ray.init(address=address or "local", **options)
    except BaseException as error:
        with suppress(Exception), _signals_kept():
            ray.shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        if not isinstance(error, Exception):
            raise
        raise _explained(error, address, folder) from error
    return Cluster(own=address is None, connected=True, folder=folder)


def _imported() -> Any:
    """Import Ray and keep its messages off the terminal."""
    before = sys.excepthook
    try:
        import ray
        from ray._private import worker
    except ImportError as error:
        raise DtrapError(
            f"Ray cannot be imported ({first_line(error)}). Install it again: pip install 'dtrap[ray]'"
        ) from error
    sys.excepthook = before  # Ray's own would report our errors to the cluster
    # Private: Ray prints here what its own processes say of a worker that died, whatever `log_to_driver` is. The pool
    # says it in one line.
    worker.print_to_stdstream = lambda *_, **__: None
    return ray


def _temporary_folder() -> Path:
    """Create the folder of Ray's sockets and logs, in RAY_TMPDIR, the system's temporary folder or /tmp.

    Not Ray's default /tmp/ray, which may belong to another user.
    """
    given = os.environ.get("RAY_TMPDIR")
    places = [given] if given else [tempfile.gettempdir(), "/tmp"]
    reason = ""
    for place in places:
        if len(os.fsencode(os.path.abspath(place))) + SOCKET_BELOW > LONGEST_SOCKET:
            reason = reason or f"{place} is too long for the path of a socket"
            continue
        try:
            return Path(tempfile.mkdtemp(prefix="dtrap_", dir=os.path.abspath(place)))
        except OSError as error:
            reason = f"{place}: {error.strerror or error}"
    raise DtrapError(
        f"Ray cannot write its temporary files ({reason}). Set the environment variable RAY_TMPDIR to a folder with a "
        "short path and free space, such as RAY_TMPDIR=/tmp."
    )


def _set_token() -> None:
    """Choose the secret of a cluster of this machine; Ray would write one into the home folder.

    Ray reads the environment when it is imported.
    """
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Restore the handlers of signals that Ray replaces."""
    main = threading.current_thread() is threading.main_thread()
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGINT") if main]
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)


def _explained(error: Exception, address: str | None, folder: Path | None) -> DtrapError:
    reason = f"{type(error).__name__}: {first_line(error)[:300]}".rstrip(".")
    if address is not None:
        return DtrapError(
            f"no connection to the Ray cluster {address} ({reason}). Check the address with `ray status --address "
            f"{address}`, that Ray and Python have the same versions there, or leave --protocol.workers an address out."
        )
    place = folder.parent if folder is not None else tempfile.gettempdir()
    return DtrapError(
        f"Ray did not start on this machine ({reason}). Check the free space in {place} (another folder: "
        "RAY_TMPDIR=/tmp) and the memory, or leave --protocol.workers out to run in one process."
    )
