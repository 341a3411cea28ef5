"""What a person types and reads: the light commands, help and completion."""

import re
import subprocess
import sys

import pytest
from dtrap.commands import COMMANDS
from layouts import make_eurosat


def python(*words, cwd):
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=cwd, check=False)


@pytest.mark.parametrize(
    "words", [["--help"], [], ["--version"], ["configs"], ["data", "--help"], ["report", "--help"]], ids=" ".join
)
def test_light_commands_answer_without_importing_torch(words, tmp_path):
    code = (
        "import sys; from dtrap.cli import main\n"
        f"try: main({words!r})\n"
        "finally: print(sorted({'torch', 'lightning', 'jsonargparse', 'numpy'} & set(sys.modules)), file=sys.stderr)"
    )
    done = python("-c", code, cwd=tmp_path)
    assert done.returncode == 0
    assert done.stderr.strip() == "[]"
    assert done.stdout


def test_of_several_processes_the_first_says_what_is_wrong(dtrap, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    for rank, said in (("0", "dtrap: unknown command 'nonsense'"), ("1", "")):
        monkeypatch.setenv("LOCAL_RANK", rank)
        status, _, err = dtrap("nonsense")
        assert status == 2
        assert err.partition(";")[0] == said
    monkeypatch.setenv("DTRAP_FOLLOWS", "1")  # within a run an error may be that of one process
    assert dtrap("nonsense")[2].startswith("process 1: dtrap: unknown command")


def test_configs_lists_every_shipped_file_with_what_it_is(dtrap):
    status, out, _ = dtrap("configs")
    assert status == 0
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert "5-way 1-shot, 800 episodes" in lines["isic_1shot.yaml"]
    assert "125" not in lines["methods/baseline.yaml"]
    assert {"folder.yaml", "demo.yaml", "backbones/pe_core.yaml", "loggers/wandb.yaml"} <= lines.keys()


def test_a_closed_standard_output_is_no_error(tmp_path):
    done = subprocess.run(["sh", "-c", f"{sys.executable} -m dtrap configs >&-"], capture_output=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_warning_is_one_line_without_code(tmp_path, tiny_model):
    root = make_eurosat(tmp_path / "eurosat", per_class=2)
    done = python(
        "-m", "dtrap", "fit", "--config", "eurosat_1shot.yaml", "--data.root", str(root), "--data.query", "1",
        *tiny_model, "--model.backbone.pretrained", "null", "--protocol.episodes", "1", "--trainer.max_epochs", "2",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stderr == "Warning: The backbone has random weights (pretrained: null): expect chance accuracy.\n"


def test_debug_shows_the_traceback(tmp_path):
    done = python("-m", "dtrap", "ft", "--debug", cwd=tmp_path)
    assert "Traceback" in done.stderr
    done = python("-m", "dtrap", "ft", cwd=tmp_path)
    assert done.returncode == 2
    commands = f"expected one of {', '.join(COMMANDS)}."
    assert done.stderr == f"dtrap: unknown command 'ft'; {commands} Did you mean 'fit'?\n"


def test_help_is_one_page_and_names_options_that_exist(dtrap):
    for command in ("fit", "test", "predict", "export"):
        status, out, _ = dtrap(command, "--help")
        _, whole, _ = dtrap(command, "--help", "all")
        assert status == 0
        assert len(out.splitlines()) <= 32
        assert max(map(len, out.splitlines())) <= 120
        for option in re.findall(r"--[a-z_.]+", out):
            known = option in whole or option in ("--help", "--data.root", "--data.shot", "--data.seed")
            assert known or option.startswith(("--data.", "--model.")), option
    _, out, _ = dtrap("predict", "--help")
    described = [line.split()[0] for line in out.splitlines() if line.startswith("  --")]
    assert described[:3] == ["--adapter", "--images", "--output"]


@pytest.mark.parametrize(
    ("topic", "told"),
    [
        ("isic", ["--data ISICDataModule", "--data.bad_images"]),
        ("coop/dtd", ["--data DTDDataModule"]),
        ("coop", ["--model.tuner CoOp", "--model.tuner.context_tokens"]),
        ("LoRA", ["--model.tuner.rank"]),
        ("protocol", ["--protocol.episodes"]),
        ("siglip2", ["--model.backbone.name"]),
    ],
)
def test_help_on_request_shows_the_options_of_a_set_a_tuner_or_a_section(dtrap, topic, told):
    status, out, err = dtrap("fit", "--config", "demo.yaml", "--help", topic)
    assert status == 0, err
    for part in told:
        assert part in out
    assert "Path to a configuration file" not in out


def test_bash_completes_commands_options_and_configs(dtrap, tmp_path):
    status, script, _ = dtrap("completion", "bash")
    assert status == 0
    (tmp_path / "dtrap.sh").write_text(script)

    def completed(*words):
        code = (
            f"source dtrap.sh; COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _shtab_dtrap; "
            'printf "%s\\n" "${COMPREPLY[@]}"'
        )
        done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
        return done.stdout.split()

    assert completed("dtrap", "pre") == ["predict"]
    assert completed("dtrap", "fit", "--data.query_r") == ["--data.query_root"]
    assert "tuners/coop.yaml" in completed("dtrap", "fit", "--config", "tuners/co")
    assert completed("dtrap", "data", "ch") == ["check"]
    assert completed("dtrap", "dashboard", "--ent") == ["--entity"]
    assert completed("dtrap", "doctor", "--back") == ["--backbone"]
    assert "--unsure" in completed("dtrap", "predict", "--uns")
    assert {"isic_1shot.yaml", "isic_5shot.yaml"} <= set(completed("dtrap", "configs", "isic"))
