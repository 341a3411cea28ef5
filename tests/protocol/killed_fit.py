"""Run by test_runner.py: `python killed_fit.py MOMENT NUMBER WORDS...` is a `dtrap fit` that dies by SIGKILL.

MOMENT is what NUMBER counts: "step" (training steps), "row" (just before that row is written) or "write" (that row is
written by half).
"""

import os
import signal
import sys

from dtrap.cli import main
from dtrap.lightning_modules import FewShotClassifier
from dtrap.protocol import run_folder as results


def die_at(owner, name, number, before=lambda *arguments: None):
    original, calls = getattr(owner, name), iter(range(1, 10**9))

    def counted(*arguments, **keywords):
        if next(calls) == number:
            before(*arguments)
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **keywords)

    setattr(owner, name, counted)


def write_half(descriptor, end, content):
    os.lseek(descriptor, end, os.SEEK_SET)
    os.write(descriptor, content[: len(content) // 2])


if __name__ == "__main__":
    moment, number, *words = sys.argv[1:]
    if moment == "step":
        die_at(FewShotClassifier, "training_step", int(number))
    elif moment == "row":
        die_at(results.ResultRows, "append", int(number))
    elif moment == "write":
        die_at(results, "_write_from", int(number), before=write_half)
    main(words)
