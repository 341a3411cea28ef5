"""`FewShotClassifier.load_from_checkpoint` creates the module from the file alone, and nothing else."""

import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from dtrap.callbacks import StageSwitch
from dtrap.datamodules import ShapesDataModule
from dtrap.errors import DtrapError
from dtrap.lightning_modules import FewShotClassifier, Objective
from dtrap.lightning_modules.backbones import OpenCLIP, Transformers
from dtrap.lightning_modules.saved import describe_module
from dtrap.lightning_modules.tuners import (
    FWT,
    LDC,
    CLIPAdapter,
    CoOp,
    FullFineTuning,
    LinearHead,
    LoRA,
    LPPlusPlus,
    MaPLe,
    StepSPT,
    TipAdapter,
    TipAdapterF,
)
from lightning.pytorch import Trainer
from quiet import QUIET
from small_backbones import transformers_clip

TUNERS = {
    "LoRA": lambda: LoRA("both", rank=3, alpha=2.0, projections=("q", "o"), blocks=[-1]),
    "CoOp": lambda: CoOp(initial_words="a photo of a", class_specific=True),
    "MaPLe": lambda: MaPLe(depth=2),
    "CLIP-Adapter": lambda: CLIPAdapter(0.5, 2),
    "Tip-Adapter": lambda: TipAdapter(2.0, 3.0, search_scale=(7.0, 3.0)),
    "Tip-Adapter-F": lambda: TipAdapterF(2.0),
    "LP++": lambda: LPPlusPlus(3),
    "LDC": lambda: LDC(0.25),
    "linear head": lambda: LinearHead("random"),
    "full": FullFineTuning,
    "StepSPT": StepSPT,
    "FWT": FWT,
    "FWT around LoRA": lambda: FWT(LoRA(rank=2)),
}


def tiny():
    return OpenCLIP("tiny_clip.json", "tiny_clip.safetensors")


def train(module, path, **trainer):
    data = ShapesDataModule(shot=1, query=2, views=2)
    trainer = Trainer(max_epochs=2, callbacks=[StageSwitch()], **QUIET, **trainer)
    trainer.fit(module, datamodule=data)
    trainer.save_checkpoint(path)
    return data


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint of LoRA, to change; and the content."""
    path = tmp_path_factory.mktemp("saved") / "lora.ckpt"
    train(FewShotClassifier(tiny(), LoRA(rank=2), Objective(logit_scale=50.0), learning_rate=0.1), path)
    return path


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tuner", TUNERS)
def test_a_module_is_created_from_its_checkpoint_alone(tmp_path, monkeypatch, tuner):
    module = FewShotClassifier(
        tiny(), TUNERS[tuner](), Objective(0.5, relation_form="softmax"), template="a drawing of a {}.", image_chunk=4
    )
    data = train(module, tmp_path / "last.ckpt")
    monkeypatch.chdir(tmp_path)
    loaded = FewShotClassifier.load_from_checkpoint("last.ckpt")
    images = data.query()["images"]
    with torch.no_grad():
        assert torch.equal(loaded.eval()(images), module.eval()(images))
    assert (loaded.prompts.class_names, loaded.prompts.prompts) == (module.prompts.class_names, module.prompts.prompts)
    assert loaded.objective.arguments == module.objective.arguments
    assert describe_module(loaded)["tuner"] == describe_module(module)["tuner"]
    assert (loaded.template, loaded.image_chunk) == ("a drawing of a {}.", 4)
    trained = sum(value.nbytes for value in module.tuner.adapter_state().values())
    size = (tmp_path / "last.ckpt").stat().st_size
    if not isinstance(module.tuner, FullFineTuning):
        assert size < 5 * trained + 100_000


def test_what_is_given_replaces_what_the_checkpoint_says(saved):
    loaded = FewShotClassifier.load_from_checkpoint(saved, learning_rate=0.5, objective=Objective(0, 0, logit_scale=50))
    assert (loaded.learning_rate, loaded.objective.suppresses) == (0.5, False)
    with pytest.raises(DtrapError, match="trained with rank 2, but here it is 4"):
        FewShotClassifier.load_from_checkpoint(saved, tuner=LoRA(rank=4, encoder="vision"))
    with pytest.raises(DtrapError, match="logit_scale 50"):
        FewShotClassifier.load_from_checkpoint(saved, objective=Objective())
    optimizer = {"optimizer": torch.optim.SGD}
    assert FewShotClassifier.load_from_checkpoint(saved, **optimizer).own_optimizer is torch.optim.SGD


def test_local_weights_are_known_by_their_checksum(tmp_path, monkeypatch, tiny_clip_files):
    config, weights = (Path(tmp_path / path.name) for path in tiny_clip_files)
    for file in tiny_clip_files:
        (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.chdir(tmp_path)
    train(FewShotClassifier(OpenCLIP(config.name, weights.name), LoRA(rank=2)), "last.ckpt")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    FewShotClassifier.load_from_checkpoint("../last.ckpt")
    renamed = weights.rename(tmp_path / "renamed.safetensors")
    with pytest.raises(DtrapError, match=r"random-[0-9a-f]{8} was read from .*random.safetensors, which is not there"):
        FewShotClassifier.load_from_checkpoint("../last.ckpt")
    FewShotClassifier.load_from_checkpoint("../last.ckpt", backbone=OpenCLIP(str(config), str(renamed)))
    with pytest.raises(DtrapError, match="trained on the backbone"):
        FewShotClassifier.load_from_checkpoint("../last.ckpt", backbone=tiny())


@pytest.mark.filterwarnings("ignore:.*random weights")
def test_random_weights_are_asked_for(tmp_path):
    backbone = OpenCLIP("tiny_clip.json", None)
    train(FewShotClassifier(backbone, LinearHead()), tmp_path / "last.ckpt")
    with pytest.raises(DtrapError, match="tiny_clip/random has random weights"):
        FewShotClassifier.load_from_checkpoint(tmp_path / "last.ckpt")
    with pytest.raises(DtrapError, match="trained on other weights"):
        FewShotClassifier.load_from_checkpoint(tmp_path / "last.ckpt", backbone=OpenCLIP("tiny_clip.json", None))
    FewShotClassifier.load_from_checkpoint(tmp_path / "last.ckpt", backbone=backbone)


def test_a_backbone_of_transformers_is_loaded_again(tmp_path):
    backbone = transformers_clip(tmp_path / "clip")
    module = FewShotClassifier(backbone, LoRA(rank=2))
    data = train(module, tmp_path / "last.ckpt")
    loaded = FewShotClassifier.load_from_checkpoint(tmp_path / "last.ckpt")
    assert isinstance(loaded.backbone, Transformers)
    with torch.no_grad():
        assert torch.equal(loaded(data.query()["images"]), module.eval()(data.query()["images"]))


class Theirs(LinearHead):
    """A stranger's tuner."""


def test_a_tuner_of_another_project_is_an_argument(tmp_path):
    train(FewShotClassifier(tiny(), Theirs()), tmp_path / "last.ckpt")
    with pytest.raises(DtrapError, match=r"its tuner is '.*Theirs' .*load_from_checkpoint\(path, tuner=\.\.\.\)"):
        FewShotClassifier.load_from_checkpoint(tmp_path / "last.ckpt")
    assert isinstance(FewShotClassifier.load_from_checkpoint(tmp_path / "last.ckpt", tuner=Theirs()).tuner, Theirs)


def test_a_checkpoint_of_an_earlier_version_says_what_it_needs(saved, tmp_path):
    content = torch.load(saved, weights_only=True)
    del content["dtrap"]
    torch.save(content, tmp_path / "old.ckpt")
    with pytest.raises(DtrapError, match="an earlier version of dtrap wrote it"):
        FewShotClassifier.load_from_checkpoint(tmp_path / "old.ckpt")
    loaded = FewShotClassifier.load_from_checkpoint(tmp_path / "old.ckpt", backbone=tiny(), tuner=LoRA(rank=2))
    expected = FewShotClassifier.load_from_checkpoint(saved).tuner.adapter_state()
    assert all(torch.equal(expected[name], value) for name, value in loaded.tuner.adapter_state().items())


class Payload:
    def __reduce__(self):
        return exec, ("import pathlib; pathlib.Path('owned').touch()",)


def deep(levels):
    value = []
    for _ in range(levels):
        value = [value]
    return value


def change(*path, to):
    def changed(content):
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = to

    return changed


ATTACKS = {
    "a pickle": change("dtrap", "settings", to=Payload()),
    "a hyper-parameter": change("hyper_parameters", to={"_instantiator": "os.system", "backbone": "x"}),
    "another class": change("dtrap", "tuner", "class_path", to="subprocess.Popen"),
    "another module's class": change("dtrap", "tuner", "class_path", to="dtrap.lightning_modules.parts.LoRA"),
    "a base class": change("dtrap", "tuner", "class_path", to="Tuner"),
    "a record": change("dtrap", "tuner", "class_path", to="TaskData"),
    "a private name": change("dtrap", "tuner", "class_path", to="__getattr__"),
    "no class": change("dtrap", "tuner", "class_path", to=["LoRA"]),
    "a backbone of another project": change("dtrap", "backbone", "class_path", to="evil.Backbone"),
    "a tuner as backbone": change("dtrap", "backbone", "class_path", to="LoRA"),
    "unknown arguments": change("dtrap", "tuner", "init_args", to={"rank": 2, "shell": "true"}),
    "a huge rank": change("dtrap", "tuner", "init_args", "rank", to=10**13),
    "a text as rank": change("dtrap", "tuner", "init_args", "rank", to="2"),
    "deep arguments": change("dtrap", "tuner", "init_args", "projections", to=deep(200)),
    "a nested tuner": change("dtrap", "tuner", "init_args", "rank", to={"class_path": "os.system", "init_args": {}}),
    "an optimizer": change("dtrap", "settings", "optimizer", to="torch.optim.SGD"),
    "wrong settings": change("dtrap", "settings", to=[1]),
    "wrong chunks": change("dtrap", "settings", "image_chunk", to="many"),
    "wrong classes": change("dtrap", "classes", to={"bird": 3}),
    "wrong prompts": change("dtrap", "classes", to={"bird": [3]}),
    "wrong files": change("dtrap", "files", to={"pretrained": "/dev/zero"}),
    "other files": change("dtrap", "files", to={"pretrained": {"path": "/dev/zero", "sha256": "0"}}),
    "another backbone": change("dtrap", "backbone", "init_args", "pretrained", to="/dev/zero"),
    "another identifier": change("dtrap", "identifier", to="other/weights"),
    "no values": change("state_dict", to=None),
    "wrong values": change("state_dict", to={"tuner.x": "text"}),
    "a text": change("dtrap", to="dtrap"),
    "a later format": change("dtrap", "format", to="dtrap-checkpoint/9"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_hostile_checkpoint_runs_nothing_and_is_explained(saved, tmp_path, monkeypatch, attack):
    monkeypatch.chdir(tmp_path)
    content = torch.load(saved, weights_only=True)
    ATTACKS[attack](content)
    torch.save(content, "bad.ckpt", pickle_module=pickle)
    if attack == "a hyper-parameter":  # what the section says goes first
        FewShotClassifier.load_from_checkpoint("bad.ckpt")
    elif attack == "an optimizer":  # no setting that is read
        assert FewShotClassifier.load_from_checkpoint("bad.ckpt").own_optimizer is None
    else:
        with pytest.raises(DtrapError) as error:
            FewShotClassifier.load_from_checkpoint("bad.ckpt")
        assert len(str(error.value)) < 900
    assert not Path("owned").exists()


def test_lists_that_are_nested_without_end_are_refused(saved, tmp_path):
    """torch's reader takes them, and Python's own writer does not make them."""
    with zipfile.ZipFile(saved) as file, zipfile.ZipFile(tmp_path / "bad.ckpt", "w") as deep:
        for name in file.namelist():
            nested = b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."
            deep.writestr(name, nested if name.endswith("data.pkl") else file.read(name))
    with pytest.raises(DtrapError, match="has no `state_dict`"):
        FewShotClassifier.load_from_checkpoint(tmp_path / "bad.ckpt")


@pytest.mark.parametrize("content", [b"", b"no checkpoint", pickle.dumps(Payload())])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    Path("bad.ckpt").write_bytes(content)
    with pytest.raises(DtrapError, match=r"bad\.ckpt"):
        FewShotClassifier.load_from_checkpoint("bad.ckpt")
    with pytest.raises(DtrapError, match=r"absent.ckpt: cannot read the checkpoint \(No such file"):
        FewShotClassifier.load_from_checkpoint("absent.ckpt")
    assert not Path("owned").exists()
