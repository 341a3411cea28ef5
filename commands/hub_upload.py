"""Upload an exported folder to the Hugging Face hub."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..errors import DtrapError, first_line
from ..protocol.adapters import AdapterCard

AGAIN = "The folder is written; to upload it later: hf upload"


class Hub:
    """A model repository on the hub.

    Args:
        repository: owner/name.
        private: Whether it is private if it does not exist yet.

    Raises:
        DtrapError: The name is not owner/name, or no token is set.
    """

    def __init__(self, repository: str, *, private: bool = True) -> None:
        owner, _, name = repository.partition("/")
        try:
            validate_repo_id(repository)
        except HFValidationError as error:
            raise DtrapError(f"--push {repository}: {first_line(error)} Give --push owner/name.") from error
        if not owner or not name:
            raise DtrapError(f"--push {repository}: expected owner/name, such as --push my-name/my-model.")
        if get_token() is None:
            raise DtrapError("--push needs a token of the Hugging Face hub: run `hf auth login`, or set HF_TOKEN.")
        self.repository, self.private = repository, private

    def upload(self, folder: Path) -> str:
        """Create the repository if it does not exist and upload all files of a folder; return its address.

        Raises:
            DtrapError: The hub cannot be reached or refuses.
        """
        api = HfApi()
        try:
            # An existing repository keeps its visibility.
            api.create_repo(self.repository, private=self.private, exist_ok=True)
            api.upload_folder(repo_id=self.repository, folder_path=folder, commit_message="Upload by dtrap export")
        except HfHubHTTPError as error:
            code = getattr(error.response, "status_code", None)
            known = {401: "the token is not valid", 403: "the token may not write there", 404: "no such owner"}
            raise self._failed(folder, known.get(code or 0, first_line(error)[:200])) from error
        except (OSError, ValueError, RuntimeError) as error:  # no network, offline mode, or an odd answer
            raise self._failed(folder, first_line(error)[:200]) from error
        return f"https://huggingface.co/{self.repository}"

    def _failed(self, folder: Path, reason: str) -> DtrapError:
        return DtrapError(f"--push {self.repository}: not uploaded ({reason}). {AGAIN} {self.repository} {folder}")


def without_local_paths(card: AdapterCard) -> AdapterCard:
    """Return a card for other people: names of local files without their folders, and no place of the data."""
    model = {name: _without_folders(part) for name, part in card.model.items()}
    files = {name: {**entry, "path": Path(entry["path"]).name} for name, entry in card.files.items() if "path" in entry}
    data = card.data
    if data is not None:
        kept = {name: value for name, value in (data.get("init_args") or {}).items() if not _has_path(value)}
        data = {**data, "init_args": kept}
    return replace(card, model=model, files=files, data=data)


def _has_path(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_has_path, value.values()))
    if isinstance(value, list):
        return any(map(_has_path, value))
    return isinstance(value, str) and Path(value).is_absolute()


def _without_folders(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_folders(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    return Path(value).name if _has_path(value) else value
