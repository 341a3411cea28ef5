"""Classes of a user's own: a module next to a given config or in the current folder, and plug-ins by entry points."""

import subprocess
import sys
import textwrap

import pytest
from dtrap.commands.plug_ins import plug_ins

SHORT = ["--config", "demo.yaml", "--protocol.episodes", 1, "--trainer.max_epochs", 1, "--data.query", 2]
SHORT += ["--trainer.callbacks", "null", "--protocol.compare", "null"]

TUNER = """
    from helper_of_{name} import RANK
    from dtrap.lightning_modules.tuners import LoRA


    class Mine(LoRA):
        '''LoRA of another name.'''

        name = "mine"

        def __init__(self, rank: int = RANK) -> None:
            super().__init__(rank=rank)
"""


def write(folder, name):
    """A module, another one that it imports, and a config that names it."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(textwrap.dedent(TUNER.format(name=name)))
    (folder / f"helper_of_{name}.py").write_text("RANK = 2\n")
    (folder / f"{name}.yaml").write_text(f"model:\n  tuner:\n    class_path: {name}.Mine\n")


def test_a_module_next_to_a_given_config_runs_resumes_and_predicts(dtrap, tmp_path):
    write(tmp_path / "configs", "mine_a")
    words = [*SHORT, "--config", "configs/mine_a.yaml", "--protocol.folder", "run"]
    path = list(sys.path)
    status, out, err = dtrap("fit", *words, "--protocol.save_adapters", "true")
    assert status == 0, err
    assert "mine on tiny_clip/" in out
    assert [each for each in sys.path if each not in path] == [str(tmp_path / "configs")]
    assert sys.path[-1] == str(tmp_path / "configs")  # after what is installed
    status, out, err = dtrap("fit", *words, "--protocol.episodes", 2)
    assert status == 0, err
    [adapter] = (tmp_path / "run" / "adapters").glob("*.safetensors")

    # A config that was found runs nothing, also if the module is there.
    status, _, err = dtrap("test", "--adapter", adapter)
    assert status == 2
    assert "If you trust that class, give it: --model.tuner mine_a.Mine." in err
    assert "mine_a" not in sys.modules
    status, _, err = dtrap("test", "--adapter", adapter, "--model.tuner", "mine_a.Mine")
    assert status == 2
    assert f"there is no module mine_a; looked in the installed packages, {tmp_path}. Put mine_a.py next to" in err
    status, out, err = dtrap("test", "--adapter", adapter, "--config", "demo.yaml", "--config", "configs/mine_a.yaml")
    assert status == 0, err
    assert "when it was saved" in out
    status, _, err = dtrap("fit", *SHORT[:-2], "--config", "run/config.yaml", "--protocol.folder", "other")
    assert status == 2
    assert f"looked in the installed packages, {tmp_path / 'run'}, {tmp_path}." in err
    assert "Traceback" not in err


def test_one_in_the_current_folder_is_named_by_an_option(dtrap, tmp_path):
    write(tmp_path, "mine_b")
    words = [*SHORT, "--protocol.folder", "run", "--model.tuner", "mine_b.Mine", "--model.tuner.rank", 3]
    status, _, err = dtrap("fit", *words, "--protocol.save_adapters", "true")
    assert status == 0, err
    [adapter] = (tmp_path / "run" / "adapters").glob("*.safetensors")
    status, _, err = dtrap("test", "--adapter", adapter, "--model.tuner", "mine_b.Mine")
    assert status == 0, err
    value = "{class_path: mine_b.Mine, init_args: {rank: 1}}"
    status, _, err = dtrap("fit", *SHORT, "--model.tuner", value, "--protocol.folder", "inline")
    assert status == 0, err


def test_a_command_that_names_no_such_module_leaves_the_path_alone(dtrap, tmp_path):
    (tmp_path / "wandb.py").write_text("raise SystemExit('imported')\n")
    write(tmp_path, "mine_c")
    path = list(sys.path)
    status, _, err = dtrap("fit", *SHORT, "--protocol.folder", "run")
    assert status == 0, err
    assert [each for each in sys.path if each not in path] == []


def test_another_command_of_the_process_takes_its_own_module(dtrap, tmp_path):
    for folder, name in (("first", "one"), ("second", "two")):
        (tmp_path / folder).mkdir()
        text = f"from dtrap.lightning_modules.tuners import LoRA\n\n\nclass Mine(LoRA):\n    name = '{name}'\n"
        (tmp_path / folder / "mine_d.py").write_text(text)
        (tmp_path / folder / "mine.yaml").write_text("model:\n  tuner: mine_d.Mine\n")
        words = [*SHORT, "--config", f"{folder}/mine.yaml", "--protocol.folder", f"run_{name}"]
        status, out, err = dtrap("fit", *words)
        assert status == 0, err
        assert f"{name} on tiny_clip/" in out


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import nothing_such\n", r"failed in line 1 of {file} (ModuleNotFoundError: No module named 'nothing_such')"),
        ("x = 1\n1 / 0\n", r"failed in line 2 of {file} (ZeroDivisionError: division by zero)"),
        ("def (\n", r"failed (SyntaxError: invalid syntax (broken_e"),
        ("x = 1\n", r"has no class Mine"),
    ],
)
def test_a_module_that_cannot_be_imported_is_told_with_its_line(dtrap, tmp_path, text, reason):
    name = f"broken_e{abs(hash(text))}"
    (tmp_path / f"{name}.py").write_text(text)
    for option in ("model.tuner", "data"):
        status, _, err = dtrap("fit", *SHORT, f"--{option}", f"{name}.Mine")
        assert status == 2
        assert f"--{option}: " in err
        assert reason.format(file=tmp_path / f"{name}.py") in err
        assert len(err.splitlines()) <= 5


def test_a_file_that_an_installed_module_hides_is_named(dtrap, tmp_path):
    (tmp_path / "textwrap.py").write_text("class Mine:\n    pass\n")
    status, _, err = dtrap("fit", *SHORT, "--model.tuner", "textwrap.Mine")
    assert status == 2
    assert "textwrap has no class Mine." in err
    assert f"{tmp_path / 'textwrap'}.py is hidden by the installed {textwrap.__file__}; rename it." in err


# Plug-ins

PLUG_IN = """
    from lightning.pytorch import Callback
    from dtrap.datamodules import ShapesDataModule
    from dtrap.lightning_modules.tuners import LoRA


    class ScaledFeatures(LoRA):
        '''LoRA, scaled.'''

        name = "scaled"


    class Birds(ShapesDataModule):
        '''Birds, drawn.'''


    class Counted(Callback):
        '''Counts.'''

        def on_fit_end(self, trainer, pl_module):
            print("steps:", trainer.global_step)
"""
ENTRY_POINTS = """
    [dtrap.tuners]
    scaled = dtrap_scaled:ScaledFeatures
    broken = dtrap_gone:Tuner
    LoRA = dtrap_scaled:ScaledFeatures
    [dtrap.datamodules]
    birds = dtrap_scaled:Birds
    [dtrap.callbacks]
    counted = dtrap_scaled:Counted
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A package with entry points, as pip leaves it: a module and its dist-info."""
    folder = tmp_path / "site"
    info = folder / "dtrap_scaled-1.2.dist-info"
    info.mkdir(parents=True)
    (folder / "dtrap_scaled.py").write_text(textwrap.dedent(PLUG_IN))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: dtrap-scaled\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(textwrap.dedent(ENTRY_POINTS))
    monkeypatch.syspath_prepend(folder)
    yield folder
    sys.modules.pop("dtrap_scaled", None)


def test_plug_ins_are_listed_without_being_imported(dtrap, installed):
    for words in (["configs"], ["fit", "--help"]):
        status, out, _ = dtrap(*words)
        assert status == 0
        assert "tuner dtrap_scaled.ScaledFeatures of dtrap-scaled 1.2" in out
        for option in ("--model.tuner scaled", "--model.tuner broken", "--data birds", "--trainer.callbacks counted"):
            assert option in out
    assert "dtrap_scaled" not in sys.modules
    status, out, _ = dtrap("fit", "--help", "birds")
    assert status == 0
    assert "--data Birds" in out


def test_they_are_named_shortly_in_options_and_configs(dtrap, installed, tmp_path):
    (tmp_path / "short.yaml").write_text(
        "model:\n  tuner:\n    class_path: ScaledFeatures\n    init_args: {rank: 2}\n"
        "data: birds\ntrainer:\n  callbacks:\n    - class_path: counted\n"
    )
    short = [*SHORT[:-6], "--protocol.compare", "null"]
    status, out, err = dtrap("fit", *short, "--config", "short.yaml", "--data.query", 2, "--protocol.folder", "run")
    assert status == 0, err
    assert "scaled on tiny_clip/" in out
    assert "steps: 1" in out
    assert "broken" not in err
    config = (tmp_path / "run" / "config.yaml").read_text()
    for name in ("ScaledFeatures", "Birds", "Counted"):
        assert f"class_path: dtrap_scaled.{name}" in config
    words = ["--model.tuner", "scaled", "--data=birds", "--data.query", 2, "--trainer.callbacks+", "counted"]
    status, out, err = dtrap("fit", *short, *words, "--protocol.folder", "other", "--protocol.save_adapters", "true")
    assert status == 0, err
    [adapter] = (tmp_path / "other" / "adapters").glob("*.safetensors")
    status, out, err = dtrap("test", "--adapter", adapter, "--model.tuner", "scaled", "--data", "birds")
    assert status == 0, err


def test_a_plug_in_changes_no_name_of_ours(dtrap, installed):
    status, out, err = dtrap("fit", "--config", "demo.yaml", "--model.tuner", "LoRA", "--print_config")
    assert status == 0, err
    assert "class_path: dtrap.lightning_modules.tuners.LoRA" in out


@pytest.mark.filterwarnings("always")
def test_a_broken_one_is_a_warning_with_its_name(dtrap, installed, recwarn):
    status, out, err = dtrap("fit", "--help", "all")
    assert status == 0
    assert "dtrap_scaled.ScaledFeatures" in out
    told = [str(each.message) for each in recwarn] + [err]
    assert any(
        "the plug-in broken of dtrap-scaled 1.2 cannot be imported (ModuleNotFoundError" in text for text in told
    )
    status, _, err = dtrap("fit", *SHORT, "--model.tuner", "broken")
    assert status == 2
    assert "--model.tuner: the plug-in broken of dtrap-scaled 1.2 cannot be imported" in err
    assert "Update or uninstall dtrap-scaled." in err


def test_two_packages_with_the_same_name_are_told_apart(dtrap, installed, tmp_path, monkeypatch):
    info = tmp_path / "more" / "dtrap_other-2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: dtrap-other\nVersion: 2\n")
    (info / "entry_points.txt").write_text("[dtrap.tuners]\nscaled = dtrap_other:Other\nodd = dtrap_other\n")
    monkeypatch.syspath_prepend(tmp_path / "more")
    with pytest.warns(UserWarning, match=r"plug-in odd of dtrap-other 2 is left out.*expected module:Class"):
        assert [each.name for each in plug_ins()].count("scaled") == 2
    status, _, err = dtrap("fit", *SHORT, "--model.tuner", "scaled")
    assert status == 2
    assert "dtrap_scaled.ScaledFeatures of dtrap-scaled 1.2" in err
    assert "dtrap_other.Other of dtrap-other 2" in err


def test_the_list_of_configs_needs_no_torch(installed):
    code = "import sys; from dtrap.cli import main\ntry: main(['configs'])\nfinally: print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.endswith("False\n")
