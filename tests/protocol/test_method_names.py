"""Names of methods follow from what is trained; the same settings are not run twice under two names."""

import json
import shutil
from pathlib import Path

import pytest
from dtrap.commands.parser import parse_methods
from dtrap.datamodules import ShapesDataModule
from dtrap.errors import DtrapError
from dtrap.lightning_modules import FewShotClassifier, Objective
from dtrap.lightning_modules.backbones import OpenCLIP
from dtrap.lightning_modules.tuners import LoRA
from dtrap.protocol import run_protocol
from rich.console import Console
from run_folders import rows_of, summary_of
from torch.optim import SGD

TRAINER = {"max_epochs": 2, "accelerator": "cpu", "logger": False}


@pytest.fixture
def names(tmp_path, monkeypatch):
    """Names of the methods of a command; overlays are given by the content of their files."""
    monkeypatch.chdir(tmp_path)

    def parse(*words, overlays=(), config="isic_5shot.yaml"):
        files = []
        for number, content in enumerate(overlays):
            if content.endswith(".yaml"):
                files.append(content)
                continue
            Path(f"mine_{number}.yaml").write_text(content)
            files.append(f"mine_{number}.yaml")
        more = ["--data.root", "somewhere"] if config != "demo.yaml" else []
        compare = ["--protocol.compare", f"[{', '.join(files)}]"]
        return [method.name for method in parse_methods(["--config", config, *more, *words, *compare])]

    return parse


OBJECTIVE = "model: {objective: {class_path: dtrap.lightning_modules.Objective, init_args: {%s}}}"


def test_a_name_says_tuner_losses_backbone_and_settings_that_differ(names):
    assert names(
        overlays=[
            "methods/baseline.yaml",
            "tuners/coop.yaml",
            "tuners/lora_text.yaml",
            "backbones/siglip2.yaml",
            OBJECTIVE % "anti_visual_weight: 0.3",
            OBJECTIVE % "anti_visual_weight: 0.0",
            "trainer: {max_epochs: 50}",
            "stage_switch: {stop: 0.5}",
        ]
    ) == [
        "svl-ra",
        "baseline",
        "coop-svl-ra",
        "lora-encoder_text-svl-ra",
        "vit-b-16-siglip2_webli-svl-ra",
        "svl-ra-anti_visual_weight_0.3",
        "ra",
        "svl-ra-max_epochs_50",
        "svl-ra-stop_1_2",
    ]


def test_the_file_name_of_an_overlay_does_not_hide_what_it_runs(names, tmp_path):
    (tmp_path / "tip_adapter.yaml").write_text("trainer: {max_epochs: 3}")
    assert names(overlays=["tip_adapter.yaml"]) == ["svl-ra", "svl-ra-max_epochs_3"]


def test_an_overlay_replaces_an_option_of_the_command_line(names):
    overlay = "model: {learning_rate: 0.1, tuner: {init_args: {rank: 4}}}"
    given = names("--model.learning_rate", "0.001", "--model.tuner.rank", "2", overlays=[overlay])
    assert given == ["svl-ra", "lora-rank_4-svl-ra-learning_rate_0.1"]


def test_overlays_with_one_tuner_are_told_apart(names):
    tuner = "model: {tuner: {class_path: dtrap.lightning_modules.tuners.CoOp, init_args: {context_tokens: %d}}}"
    assert names(overlays=[tuner % 16, tuner % 4]) == [
        "svl-ra",
        "coop-svl-ra",
        "coop-svl-ra-context_tokens_4",
    ]


def test_a_name_in_an_overlay_is_its_own_and_one_on_the_command_line_the_main_method_s(names):
    overlay = "protocol: {method: longer}\ntrainer: {max_epochs: 300}"
    given = names("--protocol.method", "mine", overlays=[overlay, "methods/baseline.yaml", "methods/paper.yaml"])
    assert given == ["mine", "longer", "baseline", "paper"]
    with pytest.raises(DtrapError, match="expected a name without '/'"):
        names(overlays=["protocol: {method: a/b}\ntrainer: {max_epochs: 300}"])


@pytest.mark.parametrize(
    ("words", "overlay"),
    [
        ((), "tuners/lora.yaml"),
        ((), "model: {learning_rate: 0.0002}"),
        ((), OBJECTIVE % "anti_visual_weight: 0.1"),
        ((), OBJECTIVE % "relation_temperature: 2.0"),
        ((), "stage_switch: {stop: 0.6}"),
        ((), "trainer: {precision: 32}"),
        ((), "model: {image_chunk: 5}"),
        ((), "trainer: {logger: false}"),
        (("--config", "methods/baseline.yaml"), "model: {objective: {init_args: {relation_form: softmax}}}"),
        (("--config", "methods/baseline.yaml"), "stage_switch: {stop: 0.5}"),
        (("--config", "methods/baseline.yaml"), "model: {plain_views: encode}"),
        (("--config", "tuners/lora_text.yaml"), OBJECTIVE % "anti_visual_weight: 0.001"),
        (("--protocol.method", "mine"), "tuners/lora.yaml"),
    ],
)
def test_an_overlay_that_changes_nothing_with_an_effect_is_refused(names, words, overlay):
    with pytest.raises(DtrapError, match="trains the same as the main method") as caught:
        names(*words, overlays=[overlay])
    assert "--protocol.method NAME" in str(caught.value)


def test_two_equal_overlays_are_refused_by_their_files(names):
    with pytest.raises(DtrapError, match=r"mine_1.yaml trains the same as mine_0.yaml"):
        names(overlays=["trainer: {max_epochs: 9}", "trainer: {max_epochs: 9}"])


def test_one_name_for_two_methods_is_refused(names):
    with pytest.raises(DtrapError, match="both have the name 'baseline'"):
        names("--protocol.method", "baseline", overlays=["methods/baseline.yaml"])


def test_arms_with_names_of_their_own_are_run_once_and_shown_under_both(dtrap, tmp_path, monkeypatch):
    (tmp_path / "arm.yaml").write_text("protocol: {method: arm_b}")
    steps, original = [], FewShotClassifier.training_step
    monkeypatch.setattr(FewShotClassifier, "training_step", lambda self, *w: steps.append(1) or original(self, *w))
    words = ["--config", "demo.yaml", "--protocol.compare", "arm.yaml", "--protocol.method", "arm_a"]
    short = ["--protocol.episodes", 2, "--trainer.max_epochs", 3, "--data.query", 2, "--protocol.folder", "run"]
    status, out, err = dtrap("fit", *words, *short)
    assert status == 0, err
    assert len(steps) == 2 * 3
    assert "'arm_b' trains the same as 'arm_a', which is run once and shown under both names." in out
    assert "identical (2 pairs)" in out
    first, second = (
        [
            {k: v for k, v in row.items() if k not in ("method", "same_as")}
            for row in rows_of(tmp_path / "run")
            if row["method"] == name
        ]
        for name in ("arm_a", "arm_b")
    )
    assert first == second
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["seconds"] == summary["methods"]["arm_a"]["seconds"]
    assert "Already finished" in dtrap("fit", *words, *short)[1]


def python_run(tmp_path, methods, episodes=1):
    data = ShapesDataModule(way=3, shot=1, query=4)
    console = Console(quiet=True)
    return run_protocol(methods, data, episodes=episodes, folder=str(tmp_path), trainer=TRAINER, console=console)


def test_equal_modules_run_once_in_the_python_interface_unless_they_may_hide_a_difference(tmp_path, monkeypatch):
    steps, original = [], FewShotClassifier.training_step
    monkeypatch.setattr(FewShotClassifier, "training_step", lambda self, *w: steps.append(1) or original(self, *w))
    model, tuner = OpenCLIP("tiny_clip.json", "tiny_clip.safetensors"), LoRA(rank=2)

    class Mine(Objective):
        """Holds something that no argument says."""

    result = python_run(tmp_path / "one", {name: lambda: FewShotClassifier(model, tuner) for name in "ab"})
    assert len(steps) == 2
    assert result.accuracy["a"] == result.accuracy["b"]
    steps.clear()
    python_run(tmp_path / "two", {name: lambda: FewShotClassifier(model, tuner, Mine()) for name in "ab"})
    assert len(steps) == 4
    steps.clear()
    slow, fast = (FewShotClassifier(model, tuner, optimizer=lambda p, rate=rate: SGD(p, rate)) for rate in (1e-4, 0.1))
    result = python_run(tmp_path / "three", {"slow": lambda: slow, "fast": lambda: fast})
    assert len(steps) == 4
    assert result.rows[0]["losses"] != result.rows[1]["losses"]
    steps.clear()
    unlike = [OpenCLIP("tiny_clip.json", None) for _ in "ab"]  # random weights, the same arguments
    python_run(tmp_path / "four", {str(n): lambda n=n: FewShotClassifier(unlike[n], LoRA(rank=2)) for n in (0, 1)})
    assert len(steps) == 4


def test_a_folder_with_the_name_of_before_resumes_under_it(dtrap, tmp_path):
    short = ["--trainer.max_epochs", 2, "--data.query", 2, "--protocol.folder", "run"]
    words = ["--config", "demo.yaml", "--protocol.compare", "tuners/lora_text.yaml"]
    assert dtrap("fit", *words, *short, "--protocol.episodes", 1)[0] == 0
    folder, new = tmp_path / "run", "lora-encoder_text-svl-ra-learning_rate_0.0002"
    assert new in summary_of(folder)["methods"]
    for name in ("results.jsonl", "identity.json"):
        text = (folder / name).read_text().replace(new, "lora_text-svl-ra")
        (folder / name).write_text(text)
    shutil.move(folder / f"config.{new}.yaml", folder / "config.lora_text-svl-ra.yaml")
    status, out, err = dtrap("fit", *words, *short, "--protocol.episodes", 2)
    assert status == 0, err
    assert "lora_text-svl-ra · 2 episodes · " in out
    assert [row["method"] for row in rows_of(folder)] == ["svl-ra", "lora_text-svl-ra"] * 2
    status, out, err = dtrap("fit", *words, *short, "--protocol.episodes", 2, "--trainer.max_epochs", 3)
    assert status == 2
