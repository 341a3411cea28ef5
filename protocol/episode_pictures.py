"""The pictures of an episode: its views and queries, and relevance maps; matplotlib is loaded where they are drawn."""

from __future__ import annotations

from collections.abc import Mapping

from ..datamodules.few_shot import FewShotDataModule
from ..errors import DtrapError
from ..lightning_modules import FewShotClassifier
from .run_folder import Row, RunFolder
from .settings import ProtocolSettings

RELEVANCE = "_relevance"


def check_pictures(settings: ProtocolSettings, data: FewShotDataModule) -> None:
    """Raise a DtrapError for pictures of data that stream their images."""
    for option in ("pictures", "relevance"):
        if data.streams and getattr(settings, option):
            raise DtrapError(
                f"--protocol.{option} is {getattr(settings, option)}, but a picture shows images of an episode, and "
                "the all-way protocol streams its images. Leave it out; `dtrap data show` draws a contact sheet."
            )


def check_relevance(settings: ProtocolSettings, modules: Mapping[str, FewShotClassifier]) -> None:
    """Raise a DtrapError if a method has no relevance maps, or its picture would have the name of another one."""
    for name, module in modules.items() if settings.relevance else ():
        from .relevance_picture import find_methods

        find_methods(module)
        if f"{name}{RELEVANCE}" in modules:
            raise DtrapError(
                f"the relevance picture of the method '{name}' and the picture of '{name}{RELEVANCE}' would be one "
                "file. Give one of them another name with --protocol.method NAME, or leave --protocol.relevance out."
            )


def draw_pictures(
    folder: RunFolder,
    settings: ProtocolSettings,
    module: FewShotClassifier,
    data: FewShotDataModule,
    row: Row,
    *,
    named: bool = True,
) -> None:
    """Draw the wanted pictures of an episode that a method was just tested on; none if it diverged.

    Args:
        folder: The run folder.
        settings: Which episodes have pictures.
        module: The method's module.
        data: The data module, set to the episode.
        row: The row of the episode.
        named: Whether the title of a picture names the method, because there are several.

    Raises:
        DtrapError: A file cannot be written.
    """
    stem = f"episode_{row['episode']:04d}_{row['method']}"
    if row.get("diverged"):
        return
    if row["episode"] < settings.pictures:
        from .picture import save_episode_picture

        save_episode_picture(folder.pictures / f"{stem}.png", module, data, row, named=named)
    if row["episode"] < settings.relevance:
        from .relevance_picture import save_relevance_picture

        save_relevance_picture(folder.pictures / f"{stem}{RELEVANCE}.png", module, data, row)
