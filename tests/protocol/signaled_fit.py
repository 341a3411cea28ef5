"""Run by test_signals.py: `python signaled_fit.py SIGNAL PLACE NUMBER WORDS...` sends itself a signal.

PLACE is the name of a method of FewShotClassifier, which is called NUMBER times before, or "import" of the commands.
"""

import builtins
import os
import signal
import sys

from dtrap.cli import main


def send_at(owner, name, number, sent):
    original, calls = getattr(owner, name), iter(range(10**9))

    def counted(*arguments, **keywords):
        if next(calls) == number:
            os.kill(os.getpid(), sent)
        return original(*arguments, **keywords)

    setattr(owner, name, counted)


if __name__ == "__main__":
    sent, place, number, *words = sys.argv[1:]
    sent = signal.Signals[sent]
    if place == "import":
        original = builtins.__import__

        def importing(name, *arguments, **keywords):
            if name == "torch":
                os.kill(os.getpid(), sent)
            return original(name, *arguments, **keywords)

        builtins.__import__ = importing
    else:
        from dtrap.lightning_modules import FewShotClassifier

        send_at(FewShotClassifier, place, int(number), sent)
    main(words)
