"""Tokenizers of open_clip models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

from ...errors import DtrapError, first_line


def read_tokenizer(folder: Path, options: dict[str, Any]) -> HFTokenizer:
    """Read a tokenizer of transformers from a folder.

    Raises:
        DtrapError: It is not readable.
    """
    try:
        return HFTokenizer(str(folder), local_files_only=True, **options)
    except Exception as error:
        raise DtrapError(
            f"Tokenizer folder {folder}: not readable as a transformers tokenizer ({first_line(error)}). Expected "
            "tokenizer.json and tokenizer_config.json, as save_pretrained() writes them."
        ) from error


def token_count(tokenizer: SimpleTokenizer | HFTokenizer, prompt: str) -> int:
    """Return the number of tokens of a prompt, including special ones, before truncation and padding."""
    if isinstance(tokenizer, SimpleTokenizer):
        return len(tokenizer.encode(prompt)) + 2
    cleaned = tokenizer.clean_fn(prompt)
    if tokenizer.tokenizer_mode == "clips":
        return len(tokenizer.tokenizer(cleaned, add_special_tokens=False).input_ids) + 3
    return len(tokenizer.tokenizer(cleaned).input_ids)
