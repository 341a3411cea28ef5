"""Errors that a user can fix, shown as one short message without a traceback, and how they are phrased."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches

# Control characters, marks that change the direction of writing, line separators, and bytes that are not text. The two
# joiners belong to the spelling of names in some scripts.
_ESCAPED = ("Cc", "Cf", "Cs", "Zl", "Zp")
_JOINERS = "\u200c\u200d"


class DtrapError(Exception):
    """A mistake in a config, a value, a file or the data; the message says what was expected and the remedy."""


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def as_typed(key: str) -> str:
    """Return a key of a config as it is typed on the command line: with two dashes, without `init_args`."""
    return f"--{key.replace('.init_args', '')}"


def nearest(value: str, options: Iterable[str]) -> str:
    """Return a sentence that names the option most like `value`, or an empty string where none is near."""
    found = get_close_matches(value, list(options), n=1, cutoff=0.5)
    return f" Did you mean '{found[0]}'?" if found else ""


def expected_one_of(value: object, options: Iterable[str]) -> str:
    """Return "expected one of a, b." with the option nearest to the value, for the end of a message."""
    options = list(options)
    return f"expected one of {', '.join(options)}.{nearest(str(value), options)}"


def check_one_of(name: str, value: object, options: Iterable[str]) -> None:
    """Raise a DtrapError unless the value is one of the options.

    Args:
        name: What the message calls the value, such as "LoRA: encoder".
        value: The value.
        options: All that it may be.
    """
    options = list(options)
    if value not in options:
        raise DtrapError(f"{name} is {value!r}; {expected_one_of(value, options)}")


def check_template(name: str, template: str) -> None:
    """Raise a DtrapError unless a class prompt has `{}` for the class name, and no other braces.

    Args:
        name: What the message calls it, such as "data.template".
        template: The prompt.
    """
    if not isinstance(template, str) or "{}" not in template:
        raise DtrapError(
            f"{name} is {template!r}; expected texts that contain {{}} for the class name, such as 'a photo of a {{}}.'"
        )
    check_braces(name, template)


def check_braces(name: str, text: str) -> None:
    """Raise a DtrapError if a text has braces other than `{}`, which would be read as words of the prompt."""
    rest = text.replace("{}", "")
    if "{" in rest or "}" in rest:
        raise DtrapError(f"{name} is {text!r}; only {{}} stands for the class name. Remove the other braces.")


def check_number(name: str, value: float, *, least: float | None = None, above: float | None = None) -> None:
    """Raise a DtrapError unless the value is a finite number in its range.

    Args:
        name: What the message calls the value, such as "Objective: logit_scale".
        value: The value.
        least: The smallest value that is allowed; None for no limit.
        above: The value must be more than this; None for no limit.
    """
    limits = [f"at least {least:g}"] if least is not None else []
    limits += [f"more than {above:g}"] if above is not None else []
    sound = math.isfinite(value) and (least is None or value >= least) and (above is None or value > above)
    if not sound:
        raise DtrapError(f"{name} is {value}; expected a finite number{''.join(f', {limit}' for limit in limits)}.")


def check_at_least(name: str, value: float, least: float, unit: str = "") -> None:
    """Raise a DtrapError unless the value is at least `least`.

    Args:
        name: What the message calls the value, such as "LoRA: rank".
        value: The value.
        least: The smallest value that is allowed.
        unit: What is counted, such as "step".
    """
    if not least <= value < math.inf:  # also NaN
        raise DtrapError(f"{name} is {value}; expected at least {least}{f' {unit}' if unit else ''}.")


def visible(text: str, keep: str = "") -> str:
    """Return a text with the characters escaped that would move the cursor, start a line or hide other characters.

    Names of files and classes, tables and cards come from others; whatever is printed passes through here.

    Args:
        text: The text.
        keep: Characters that stay, such as the line ends of a message.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character
        if character in keep or character in _JOINERS or unicodedata.category(character) not in _ESCAPED
        else character.encode("unicode_escape", "surrogatepass").decode("ascii")
        for character in text
    )


def check_lightning(trainer: object) -> None:
    """Raise a DtrapError for a Trainer of the package pytorch_lightning, which takes its own classes only."""
    if type(trainer).__module__.partition(".")[0] == "pytorch_lightning":
        raise DtrapError(
            "dtrap's data modules are those of lightning.pytorch, and this Trainer is of pytorch_lightning: "
            "write `from lightning.pytorch import Trainer`, or pass the loaders: trainer.fit(model, "
            "data.train_dataloader())."
        )
