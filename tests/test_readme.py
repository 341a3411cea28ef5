"""The Python code of the README runs as it is, with a tiny model and few epochs."""

import re
from pathlib import Path

import pytest
from layouts import make_eurosat

README = (Path(__file__).parents[1] / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_the_code_of_the_readme_runs(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = make_eurosat(tmp_path / "eurosat", per_class=20)
    code = SNIPPETS[number]
    for shown, small in {
        '"/data/EuroSAT"': repr(str(root)),
        '"ViT-B-16-quickgelu", "openai"': '"tiny_clip.json", "tiny_clip.safetensors"',
        "Trainer(max_epochs=250,": "Trainer(logger=False, accelerator='cpu', max_epochs=1,",
    }.items():
        code = code.replace(shown, small)
    scope = {"__name__": "readme"}
    exec(compile(code, "README.md", "exec"), scope)
    assert 0 <= float(scope["trainer"].callback_metrics["test/accuracy"]) <= 100
