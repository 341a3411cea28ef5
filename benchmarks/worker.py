"""A process of the suite: one task, told as JSON, whose replies are lines of JSON; imports whatever dtrap there is."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from .settings import Settings


def main() -> None:
    """Do the task of the command line."""
    told = json.loads(sys.argv[1])
    settings, arguments = Settings(**told["settings"]), told["arguments"]
    # What libraries print must not get between the replies.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import torch

    torch.set_num_threads(settings.threads)
    import warnings

    warnings.filterwarnings("ignore")
    TASKS[told["task"]](settings, replies=replies, **arguments)


def serve(settings: Settings, replies: Any, method: str) -> None:
    """Make steps on demand."""
    from . import steps

    steps.serve(settings, method, replies)


def peak(settings: Settings, replies: Any, **arguments: Any) -> None:
    """Measure the memory of two steps."""
    from . import memory

    print(json.dumps(memory.measure_here(settings, **arguments)), file=replies, flush=True)


def episodes(settings: Settings, replies: Any) -> None:
    """Run demo episodes on demand: each line in is [words, ...]; the reply is the seconds."""
    from . import episodes

    print(json.dumps({"ready": True}), file=replies, flush=True)
    for line in sys.stdin:
        print(json.dumps({"seconds": episodes.run_demo(*json.loads(line))}), file=replies, flush=True)


TASKS = {"serve": serve, "peak": peak, "episodes": episodes}

if __name__ == "__main__":
    main()
