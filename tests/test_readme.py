"""What the README shows runs: its Python code as it stands, with a tiny model and few epochs, and its config names."""

import re
from pathlib import Path

import pytest
from dtrap.configs import find_config
from layouts import make_eurosat

README = (Path(__file__).parents[1] / "README.md").read_text()
# The one of an exported model runs in tests/protocol/test_export.py.
SNIPPETS = [code for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "class_features" not in code]


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_the_code_of_the_readme_runs(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = make_eurosat(tmp_path / "eurosat", per_class=20)
    code = SNIPPETS[number]
    for shown, small in {
        '"/data/EuroSAT"': repr(str(root)),
        '"ViT-B-16-quickgelu", "openai"': '"tiny_clip.json", "tiny_clip.safetensors"',
        "Trainer(max_epochs=250,": "Trainer(logger=False, accelerator='cpu', max_epochs=1,",
        "Trainer(max_epochs=10,": "Trainer(logger=False, accelerator='cpu', max_epochs=1,",
    }.items():
        code = code.replace(shown, small)
    scope = {"__name__": "readme"}
    exec(compile(code, "README.md", "exec"), scope)
    if number == 0:
        assert 0 <= float(scope["trainer"].callback_metrics["test/accuracy"]) <= 100


def test_every_config_that_the_readme_names_is_shipped():
    names = set(re.findall(r"[\w/]+\.yaml", README)) - {
        "config.yaml",
        "one.yaml",
        "two.yaml",
        "lesions.yaml",
        "tuners/X.yaml",
    }
    assert len(names) > 10
    for name in names:
        find_config(name)
