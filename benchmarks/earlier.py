"""An earlier commit's dtrap, in a process that waits while this one works: two versions cannot live in one."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from .measuring import NotRunError
from .settings import ROOT, Settings


class EarlierCommit:
    """A task of `worker` that answers each line with a line of JSON, and ends with its input.

    Args:
        settings: The settings of this process.
        task: Name of the task.
        **arguments: Its arguments.
    """

    def __init__(self, settings: Settings, task: str, **arguments: Any) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", settings.task(task, **arguments)],
            env=settings.environment(before=True),
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.read()

    def read(self) -> dict[str, Any]:
        """Return its next answer.

        Raises:
            NotRunError: It has ended.
        """
        line = self.process.stdout.readline() if self.process.stdout else ""
        if not line:
            raise NotRunError(f"the process of the earlier commit ended with status {self.process.wait()}")
        return json.loads(line)

    def ask(self, line: str) -> dict[str, Any]:
        """Send a line and return the answer."""
        if self.process.stdin is None:
            raise NotRunError("the process of the earlier commit has no input")
        print(line, file=self.process.stdin, flush=True)
        return self.read()

    def close(self) -> None:
        """End it."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait()
