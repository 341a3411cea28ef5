"""The options of `dtrap predict`: in the parser, and as they are typed."""

from __future__ import annotations

import os
from itertools import pairwise
from typing import Any, Literal

OPTIONS = ("images", "escape_formulas", "overwrite", "unsure", "reject", "reject_by", "sort_into")
_TYPED_OTHERWISE = {"--sort-into": "--sort_into", "--reject-by": "--reject_by"}


def add_options(parser: Any) -> None:
    """Add the options to the parser of the command."""
    parser.add_argument(
        "--images",
        type=str | list[str] | None,
        help="Images, folders with their subfolders, patterns such as 'photos/*.jpg', tables with a column `path`",
    )
    parser.add_argument("--output", type=str, default="predictions.csv", help="CSV file to write")
    parser.add_argument("--overwrite", type=bool, default=False, help="Replace the CSV file if it exists")
    parser.add_argument(
        "--unsure", type=float | None, help="Label images with a lower confidence, such as 0.6, as unsure"
    )
    parser.add_argument(
        "--reject",
        type=float | None,
        help="Label images that are like none of the classes as rejected, such as 0.05: so many of the classes' own "
        "images are below the threshold",
    )
    parser.add_argument(
        "--reject_by",
        type=Literal["tuned", "zero_shot"],
        default="tuned",
        help="Similarity that --reject compares: of the tuned model, or of the backbone without the tuner",
    )
    parser.add_argument(
        "--sort_into", type=str | None, help="Copy the images into a folder of each label in this folder"
    )
    parser.add_argument(
        "--escape_formulas",
        type=bool,
        default=True,
        help="Put ' before names that begin with = + - @ in the CSV: a spreadsheet would compute them",
    )


def taken_images(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Return the words without `--images` and its values, and the values of all of these.

    What follows `--images` up to the next option are its values, as a shell writes the files of a pattern. They do not
    go through the parser, which would read a file called [1].jpg as a list.
    """
    words: list[str] = []
    images: list[str] = []
    takes = False
    for word in arguments:
        if word.startswith("--images="):
            images.append(word.partition("=")[2])
            takes = False
        elif word == "--images":
            takes = True
        elif takes and not word.startswith("--") and (not word.startswith("-") or os.path.lexists(word)):
            images.append(word)
        else:
            takes = False
            words.append(word)
    return words, images


def as_parsed(words: list[str]) -> list[str]:
    """Return the words as the parser takes them: `--overwrite` may stand alone, and `--sort-into` has a dash."""
    found: list[str] = []
    for word, following in pairwise([*words, ""]):
        name, equals, value = word.partition("=")
        word = f"{_TYPED_OTHERWISE.get(name, name)}{equals}{value}"
        alone = word == "--overwrite" and following.lower() not in ("true", "false", "yes", "no")
        found.append("--overwrite=true" if alone else word)
    return found
