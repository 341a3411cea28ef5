"""What the documentation shows runs: files, commands and Python of a page in their order, on small data."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml
from dtrap.configs import SHIPPED, find_config
from layouts import make_chestx, make_class_folders, make_eurosat, make_isic, picture

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
TEXTS = {page: (DOCS / page).read_text(encoding="utf-8") for page in PAGES} | {
    "README.md": (ROOT / "README.md").read_text(encoding="utf-8")
}
FENCE = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```', re.DOTALL | re.MULTILINE)
TITLES = {title for text in TEXTS.values() for _, title, _ in FENCE.findall(text) if title}
# The options of classes that the pages write themselves, and of callbacks that they add.
OWN_OPTIONS = {"data.prefix", "model.tuner.norms", "trainer.callbacks.measures"}
SPECIES = ["great_tit", "robin", "wren", "dunnock", "rook", "heron"]


@pytest.fixture
def run_pages(dtrap, tmp_path, monkeypatch):
    """Run pages in one folder: the text that their blocks printed.

    Titled blocks become files. Of the shell's commands those of dtrap run, `fit` with further words that shorten it,
    except those on the data sets of the paper.
    """
    monkeypatch.syspath_prepend(tmp_path)
    printed = []

    def run_command(line, shorter):
        name, *words = shlex.split(line)
        if name != "dtrap" or words[0] == "configs" or "--data-root" in words:
            return
        status, out, err = dtrap(*words, *(shorter if words[0] == "fit" else []))
        assert status == 0, (line, err)
        printed.append(out)

    def run(*pages, shown=None, shorter=()):
        for page in pages:
            scope = {"__name__": "page"}
            for language, title, code in FENCE.findall(TEXTS[page]):
                for text, small in (shown or {}).items():
                    code = code.replace(text, str(small))
                if title:
                    (tmp_path / title).write_text(code)
                elif language == "python":
                    exec(compile(code, page, "exec"), scope)
                elif language == "bash":
                    for line in code.replace("\\\n", " ").splitlines():
                        run_command(line.partition("  #")[0], shorter)
        return "\n".join(printed)

    run.command = lambda line: run_command(line, ())
    yield run
    for title in TITLES:
        sys.modules.pop(Path(title).stem, None)


@pytest.fixture
def birds(tmp_path):
    """The data set of the page: photos, and their species in a CSV file."""
    root = tmp_path / "birds"
    (root / "photos").mkdir(parents=True)
    rows = ["file,species"]
    for number in range(24):
        picture(number).save(root / "photos" / f"{number:04d}.jpg")
        rows.append(f"{number:04d}.jpg,{SPECIES[number % 6]}")
    (root / "labels.csv").write_text("\n".join(rows) + "\n")
    return root


def test_add_a_data_set(run_pages, birds):
    out = run_pages("how-to/add-a-data-set.md", shown={"/data/birds": birds})
    assert "Birds 5-way 1-shot · 3 episodes · " in out
    assert "Birds all-way 1-shot · 1 seed · " in out


def test_add_a_tuner(run_pages, tmp_path):
    short = ["--trainer.max_epochs", "2", "--data.query", "2"]
    tiny = {'"ViT-B-16-quickgelu", "openai"': '"tiny_clip.json", "tiny_clip.safetensors"'}
    out = run_pages("how-to/add-a-tuner.md", shown=tiny, shorter=short)
    assert "bias on tiny_clip/" in out
    assert "bias-svl-ra" in out
    assert "when it was saved" in out
    assert (tmp_path / "tuned" / "class_features.safetensors").exists()


def test_add_a_backbone(run_pages):
    out = run_pages("how-to/add-a-backbone.md", shorter=["--trainer.max_epochs", "2", "--data.query", "2"])
    assert "clip-adapter on dual-encoder: trains" in out
    assert "full on dual-encoder: trains" in out


def test_choose_a_backbone(run_pages, tmp_path):
    shown = {"/data/EuroSAT": make_eurosat(tmp_path / "data", per_class=4), "backbones/remoteclip": "backbones/tiny"}
    short = ["--data.shot", 1, "--data.query", 2, "--trainer.max_epochs", 1, "--protocol.episodes", 1]
    out = run_pages("how-to/choose-a-backbone.md", shown=shown, shorter=short)
    assert "Published logits of dtrap: agree" in out
    assert ": the same (" in out


def test_use_it_in_a_lightning_project(run_pages, tmp_path):
    shown = {
        '"/data/EuroSAT"': repr(str(make_eurosat(tmp_path / "eurosat", per_class=24))),
        '"ViT-B-16-quickgelu", "openai"': '"tiny_clip.json", "tiny_clip.safetensors"',
        "Trainer(max_epochs=250,": "Trainer(logger=False, accelerator='cpu', max_epochs=1,",
        "Trainer(max_epochs=10,": "Trainer(logger=False, accelerator='cpu', max_epochs=1,",
        "root: /data/EuroSAT": f"root: {tmp_path / 'eurosat'}",
        "name: ViT-B-16-quickgelu, pretrained: openai": "name: tiny_clip.json, pretrained: tiny_clip.safetensors",
        "max_epochs: 100": "max_epochs: 2\n  accelerator: cpu",
    }
    run_pages("how-to/use-it-in-a-lightning-project.md", shown=shown)
    assert (tmp_path / "best" / "best.ckpt").exists()


def test_add_a_plug_in(run_pages):
    short = ["--trainer.max_epochs", "1", "--data.query", "2", "--protocol.episodes", "1"]
    out = run_pages("how-to/add-a-plug-in.md", shorter=[*short, "--trainer.callbacks", "null"])
    assert "named-lora on tiny_clip/" in out
    assert "when it was saved" in out


def test_compare_methods_and_read_the_rows(run_pages, tmp_path, capsys):
    short = ["--trainer.max_epochs", "2", "--data.query", "2", "--protocol.episodes", "2"]
    out = run_pages("how-to/compare-methods.md", "reference/rows.md", shorter=short)
    assert "svl-ra-anti_visual_weight_0.3" in out
    assert "lpp-svl-ra" in out
    assert (tmp_path / "table.csv").exists()
    assert re.search(r"-?[\d.]+\n", capsys.readouterr().out)


def test_see_the_trap(run_pages, tmp_path, capsys):
    short = ["--trainer.max_epochs", "2", "--data.query", "3", "--protocol.episodes", "2"]
    shown = {"Trainer(max_epochs=50,": "Trainer(logger=False, accelerator='cpu', max_epochs=2,"}
    out = run_pages("how-to/see-the-trap.md", shown=shown, shorter=short)
    assert "stopped" in out
    summary = json.loads((tmp_path / "runs" / "trap" / "summary.json").read_text())
    assert summary["measure_differences"]["svl"]["query.fitted_cross_entropy"]["count"] == 2
    printed = capsys.readouterr().out
    assert "'before.image': [20, " in printed
    assert "'gap_drop': " in printed


def test_run_a_study(run_pages, tmp_path):
    out = run_pages("how-to/run-a-study.md")
    assert "2 cells: 0 of 8 rows done, 8 missing." in out
    assert "Two weights of SVL" in out
    assert len(list((tmp_path / "runs" / "study_lambda").glob("*/summary.json"))) == 2


def test_log_runs(run_pages, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    short = ["--trainer.max_epochs", "2", "--data.query", "2", "--protocol.episodes", "1"]
    run_pages("how-to/log-runs.md", shorter=short)
    assert "figures/losses" in (tmp_path / "workspace.json").read_text()
    assert list(tmp_path.glob("runs/*/wandb/offline-run-*"))
    assert list(tmp_path.glob("runs/*/tensorboard/*"))


def test_run_a_sweep(run_pages, tmp_path):
    out = run_pages("how-to/run-a-sweep.md", shorter=["--trainer.max_epochs=2", "--protocol.episodes=1"])
    assert "Rank and learning rate on the demo" in out
    (folder,) = (path.name for path in tmp_path.glob("runs/shapes*"))
    # The page's name, and the words that make the run shorter.
    assert "_tuner.rank-4_learning-rate-0.001" in folder


def test_check_your_own_images_and_cite_what_was_used(run_pages, tmp_path):
    make_class_folders(tmp_path / "my_photos", ["maple", "oak"], 4)
    check = TEXTS["how-to/get-and-check-data.md"].replace("/data", str(tmp_path / "my_photos"))
    own = [line for line in check.splitlines() if line.startswith("dtrap data") and "coop/dtd" not in line]
    assert len(own) == 4
    for line in own:
        run_pages.command(line)
    out = run_pages("how-to/cite-what-you-used.md", shorter=["--trainer.max_epochs", "2", "--data.query", "2"])
    assert "images per class" in out
    assert (tmp_path / "findings.csv").exists()
    assert (tmp_path / "my_photos.png").exists()
    assert "@inproceedings{hu2022lora," in out


def test_classify_your_own_images_and_take_the_model_along(run_pages, tmp_path):
    for folder in ("my_photos", "my_test_photos", "new_photos"):
        make_class_folders(tmp_path / folder, ["maple", "oak", "birch"], 4)
    for number, path in enumerate(sorted((tmp_path / "my_test_photos").rglob("*.jpg"))):
        picture(9000 + number).save(path)  # images of the training would be refused
    short = ["--config", "backbones/tiny.yaml", "--trainer.max_epochs", "1", "--protocol.episodes", "1"]
    (tmp_path / "list.csv").write_text("path,label\nmy_test_photos/oak/oak_1.jpg,oak\n")
    pages = ["classify-your-own-images", "test-on-your-own-images", "label-new-images", "take-a-model-along"]
    out = run_pages(*(f"how-to/{page}.md" for page in pages), shorter=short)
    assert "runs/my_first/test/wrong_or_unsure.png" in out
    assert "Accuracy: " in out
    assert "calibration error of the confidences" in out
    assert (tmp_path / "sorted").is_dir()
    assert "no held-out images, so no accuracy" in out
    assert (tmp_path / "predictions.csv").read_text().startswith("path,label,score,runner_up,")
    assert (tmp_path / "my_model" / "class_features.safetensors").exists()
    assert (tmp_path / "my_adapter" / "adapter_model.safetensors").exists()


def test_balance_classes(run_pages, tmp_path):
    make_class_folders(tmp_path / "my_photos", ["maple", "birch", "oak"], [12, 6, 4])
    (tmp_path / "imbalance.yaml").write_text(
        (SHIPPED / "studies" / "imbalance.yaml")
        .read_text()
        .replace("episodes: 10", "episodes: 2")
        .replace("max_epochs=100", "max_epochs=1")
    )
    short = ["--config", "backbones/tiny.yaml", "--trainer.max_epochs", "1"]
    out = run_pages("how-to/balance-classes.md", shorter=short)
    assert "intervals over repeats of held-out images: Nadeau and Bengio's corrected resampled t" in out


def test_label_images_with_a_table(run_pages, tmp_path, caplog):
    make_class_folders(tmp_path / "my_photos", ["birch", "maple", "oak"], 4)
    isic = make_isic(tmp_path / "isic", per_class=24)
    lesions = [f"HAM_{label}{n // 2},ISIC_00{label:02d}{n:03d}" for label in range(7) for n in range(24)]
    (isic / "HAM10000_metadata.csv").write_text("\n".join(["lesion_id,image_id", *lesions]) + "\n")
    shown = {"/data/ISIC": isic, "/data/ChestX": make_chestx(tmp_path / "chestx", per_class=20)}
    short = ["--config", "backbones/tiny.yaml", "--trainer.max_epochs", "1", "--protocol.episodes", "1"]
    out = run_pages("how-to/label-images-with-a-table.md", shown=shown, shorter=short)
    assert "trained on 9 images, tested on 3" in out
    assert "column 'patient_id' is not used" in caplog.text


@pytest.mark.parametrize("page", TEXTS)
def test_every_config_that_a_page_names_is_shipped(page):
    own = TITLES | {"config.yaml", "config.NAME.yaml", "NAME.yaml", "one.yaml", "two.yaml"}
    own |= {"shape_descriptions.yaml"}  # in assets
    for name in set(re.findall(r"[\w/]+\.yaml", TEXTS[page])) - own:
        if not (SHIPPED / "studies" / name).is_file():  # `dtrap study` finds a study by its name alone
            find_config(name)


def dotted(values, start=""):
    """Keys of nested sections; `init_args` and `class_path` are not written on the command line."""
    for key, value in values.items():
        name = start if key == "init_args" else f"{start}.{key}".lstrip(".")
        yield name
        if isinstance(value, dict):
            yield from dotted(value, name)


def test_every_option_that_a_page_names_exists(dtrap):
    known = set(OWN_OPTIONS)
    for names in (
        "folder.yaml",
        "table.yaml",
        "class_folders_1shot.yaml all_way/clip_lora.yaml",
        "isic_1shot.yaml tuners/coop.yaml",
    ):
        words = [word for name in names.split() for word in ("--config", name)]
        status, out, err = dtrap("fit", *words, "--data.root", "somewhere", "--print_config")
        assert status == 0, err
        known |= set(dotted(yaml.safe_load(out)))
    options = r"--((?:data|model|protocol|stage_switch|trainer)\.[\w.]*\w)"
    named = {(page, option) for page, text in TEXTS.items() for option in re.findall(options, text)}
    assert len(named) > 40
    assert {(page, option) for page, option in named if option not in known} == set()
    settings = {name for name in known if name.startswith("protocol.")}
    assert settings <= set(re.findall(options, TEXTS["reference/options.md"]))


def test_the_readme_is_short():
    lines = TEXTS["README.md"].splitlines()
    assert len(lines) <= 150
    assert max(map(len, lines)) <= 120
