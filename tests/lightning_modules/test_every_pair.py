"""Every tuner on every kind of backbone, plain and with SVL + RA: it trains, or it says why it cannot.

`tools/tuner_table.py` writes the table in `docs/reference/tuners.md` from what these tests record.
"""

import re
import warnings

import pytest
import torch
from dtrap.callbacks import StageSwitch
from dtrap.datamodules import ShapesDataModule
from dtrap.errors import DtrapError
from dtrap.lightning_modules import FewShotClassifier, Objective
from lightning.pytorch import Callback, Trainer
from small_backbones import SMALL
from small_tuners import TUNERS

METHODS = {"plain": lambda: Objective(0.0, 0.0), "SVL + RA": lambda: Objective()}
NO_BLOCKS = "ResNet"
# Terms that what is trained cannot change, with SVL + RA.
CONSTANT = {
    **dict.fromkeys(("LoRA, text", "CoOp", "full, text"), "L_ad"),
    **dict.fromkeys(("Tip-Adapter-F", "LP++", "linear head"), "L_ad L_ra"),
    "Tip-Adapter": "untrained",
}
REFUSED = {
    ("open_clip CLIP ResNet", "LoRA, vision"): NO_BLOCKS,
    ("open_clip CLIP ResNet", "LoRA, both"): NO_BLOCKS,
    ("open_clip CLIP ResNet", "DoRA with MLPs"): NO_BLOCKS,
    ("open_clip CLIP ResNet", "VeRA, both"): NO_BLOCKS,
    ("open_clip CLIP ResNet", "MaPLe"): NO_BLOCKS,
    ("open_clip CLIP ResNet", "FWT around LoRA"): NO_BLOCKS,
}


class Start(Callback):
    """The trained values before the first step; a parameter without gradient in a step would stop DDP."""

    def on_after_backward(self, trainer, pl_module):
        trained = pl_module.tuner.trained_parameters()
        assert pl_module.tuner.trains_itself or all(parameter.grad is not None for parameter in trained)

    def on_train_start(self, trainer, pl_module):
        self.values = [parameter.detach().clone() for parameter in pl_module.tuner.trained_parameters()]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: tmp_path_factory.mktemp(f"backbone{number}") for number, name in enumerate(SMALL)}


def outcome(backbone, tuner, objective):
    """What happened in one episode: "works" (the constant terms, or "untrained"), or "refused" with the reason."""
    start = Start()
    data = ShapesDataModule(shot=1, query=1, views=2)
    try:
        module = FewShotClassifier(backbone, tuner, objective, image_chunk=4, text_chunk=2)
        trainer = Trainer(
            max_epochs=5, callbacks=[StageSwitch(), start], accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer.fit(module, datamodule=data)
        trainer.test(module, datamodule=data, verbose=False)
    except DtrapError as error:
        return f"refused: {error}", None, []
    if not module.tuner.trained_parameters():
        assert any("has nothing to train" in str(warning.message) for warning in caught) == objective.suppresses
        return "works untrained", module, []
    told = (re.match(r"(L_\w+) is constant here", str(warning.message)) for warning in caught)
    constant = sorted({match.group(1) for match in told if match})
    return " ".join(["works", *constant]), module, start.values


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("tuner", TUNERS)
@pytest.mark.parametrize("backbone", SMALL)
def test_a_pair_works_or_says_why_not(folders, record_property, backbone, tuner, method):
    made = SMALL[backbone](folders[backbone])
    before = {name: value.detach().clone() for name, value in made.named_parameters()}
    torch.manual_seed(0)
    result, module, start = outcome(made, TUNERS[tuner](), METHODS[method]())
    for name, value in (("backbone", backbone), ("tuner", tuner), ("method", method), ("outcome", result)):
        record_property(name, value)
    expected = REFUSED.get((backbone, tuner))
    if expected is not None:
        assert result.startswith("refused: ")
        assert expected in result
        return
    constant = "untrained" if tuner == "Tip-Adapter" else CONSTANT.get(tuner, "") if method == "SVL + RA" else ""
    assert result == f"works {constant}".rstrip()
    trained = module.tuner.trained_parameters()
    assert bool(trained) != (tuner == "Tip-Adapter")
    assert all(not torch.equal(before, after) for before, after in zip(start, trained, strict=True))
    assert all(torch.isfinite(value).all() for value in module.tuner.adapter_state().values())
    assert int(module.confusion.compute().sum()) == 5
    ids = {id(parameter) for parameter in trained}
    for name, value in module.backbone.named_parameters():
        if id(value) not in ids and name in before:
            assert torch.equal(before[name], value), name
