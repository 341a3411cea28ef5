"""Text towers of transformers' BERT family inside open_clip models, as BiomedCLIP has one.

open_clip wraps such a tower in its `HFTextEncoder`. Padding is masked there, so a text may end after its last token.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from open_clip.hf_model import HFTextEncoder
from torch import Tensor, nn

from ...errors import DtrapError
from .attention import SeparateAttention
from .checkpoint import read_json
from .hub import FolderFiles, HubFiles, ModelFiles

FAMILIES = ("bert", "roberta", "xlm-roberta")


class SeparateBertAttention(SeparateAttention):
    """Replacement of the attention with residual and norm in a BERT block.

    Args:
        layer: A `BertAttention` or the like of another model of the family.
    """

    fused_as: str | None = None
    replaced_names: ClassVar = {
        "q_proj": "self.query",
        "k_proj": "self.key",
        "v_proj": "self.value",
        "out_proj": "output.dense",
        "norm": "output.LayerNorm",
    }

    def __init__(self, layer: Any) -> None:
        inner, output = layer.self, layer.output
        projections = inner.query, inner.key, inner.value, output.dense
        super().__init__(projections, inner.num_attention_heads, inner.dropout.p)
        self.out_dropout, self.norm = output.dropout, output.LayerNorm

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, *_: Any, **__: Any
    ) -> tuple[Tensor, None]:
        """Return the output [B, L, C] of tokens [B, L, C], and None as weights.

        Args:
            hidden_states: Tokens.
            attention_mask: Broadcastable to [B, H, L, L]: True where attention is allowed, or values to add.
        """
        attended = self.attend(hidden_states, hidden_states, hidden_states, attn_mask=attention_mask)
        return self.norm(attended + hidden_states), None


def is_bert(tower: nn.Module) -> bool:
    """Return whether a text tower is one of this family."""
    return isinstance(tower, HFTextEncoder)


def separate_bert_attention(tower: Any) -> list[str]:
    """Replace the attention of every block in place; return dotted names within the tower."""
    names = []
    for number, block in enumerate(text_blocks(tower)):
        block.attention = SeparateBertAttention(block.attention).train(block.attention.training)
        names.append(f"transformer.encoder.layer.{number}.attention")
    return names


def text_blocks(tower: Any) -> list[Any]:
    """Return the blocks of a tower."""
    return list(tower.transformer.encoder.layer)


def word_embedding(tower: Any) -> nn.Module:
    """Return the word embedding of a tower."""
    return tower.transformer.embeddings.word_embeddings


def last_positions(tower: Any, tokens: Tensor) -> Tensor:
    """Return the position [P] of the last token of each text [P, L] that is not padding."""
    return (tokens != tower.config.pad_token_id).sum(dim=-1) - 1


def config_folder(text_config: dict[str, Any], files: ModelFiles | None, cache_dir: str | None, name: str) -> str:
    """Return the folder with the config.json of a text tower, which is downloaded if it is not cached.

    Args:
        text_config: `text_cfg` of an open_clip model.
        files: The folder or repository of the model, which may have the file itself.
        cache_dir: The hub's cache folder.
        name: The model's name, for the error.

    Raises:
        DtrapError: The file cannot be had, or the tower is not of the BERT family.
    """
    repo = text_config["hf_model_name"]
    remedy = (
        f"Download its config.json on a machine with network into {files.folder}."
        if isinstance(files, FolderFiles)
        else "Set HF_HOME to a cache that has it."
    )
    hub = HubFiles(repo, remedy, cache_dir, f"The config of the text tower {repo} of '{name}' is")
    own = files.on_disk(["config.json"]) if isinstance(files, FolderFiles) else None
    path = own if own is not None and _family(own) in FAMILIES else hub.require(["config.json"])
    if _family(path) not in FAMILIES:
        raise DtrapError(
            f"'{name}': its text tower is {repo} of the family {_family(path)!r} in transformers; expected one of "
            f"{', '.join(FAMILIES)}. Use a model with open_clip's own text tower, such as ViT-B-16-quickgelu."
        )
    return str(Path(path).parent)


def _family(path: Path) -> object:
    return read_json(path).get("model_type")
