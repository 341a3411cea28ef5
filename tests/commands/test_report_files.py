"""The files of `dtrap report`: Markdown, LaTeX, CSV and the page, of runs whose texts come from a stranger."""

import base64
import csv
import io
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_writer import full_row, write_run
from safetensors.numpy import save_file
from study_folders import ablation, cell_of, rows_of, write_rows, write_study

OLD = Path(__file__).parents[1] / "data" / "old_run"
VOID = {"meta", "img", "br", "link", "hr", "input"}
EVIL = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "=HYPERLINK(1)",
    "\\input{/etc/passwd}",
    "a|b\n| c `d` [e](http://f) ![g](h)",
    "$x_1^2$ {y} % # & ~",
    "\x1b[2J\u202eevil",
    "{{ 7 * 7 }}{% for %}",
]
FORMS = {"markdown": "all.md", "latex": "all.tex", "csv": "all.csv", "html": "all.html"}
EVERY_FORM = [word for form, name in FORMS.items() for word in (f"--{form}", name)]


class Page(HTMLParser):
    """The elements of a page: that they are closed, their attributes, the text of headings, captions and code."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append((tag, len(self.texts)))
            self.texts.append([tag, ""])

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        for _, place in self.open:
            self.texts[place][1] += data

    def named(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def text_of(self, tag):
        return [" ".join(text.split()) for name, text in self.texts if name == tag]


@pytest.fixture
def hostile(tmp_path):
    """A run whose description, methods, classes, models and settings have texts that do something elsewhere."""
    values = {name.replace("/", "_"): [50.0, 61.0, 52.0] for name in EVIL}

    def more(method, episode):
        return full_row(method, episode, (EVIL[0], EVIL[4], EVIL[7]))

    settings = {name: {"model": {EVIL[1]: EVIL[0], "path": EVIL[6]}} for name in values}
    return write_run(
        tmp_path / "run <b>x", EVIL[0], values, 3, EVIL[5], more, settings, backbone=EVIL[1], tuner=EVIL[4]
    )


def test_texts_of_strangers_do_nothing_in_any_form(dtrap, hostile, tmp_path):
    status, out, err = dtrap("report", hostile, *EVERY_FORM)
    assert (status, err) == (0, "")
    assert "\x1b" not in out
    text = (tmp_path / "all.html").read_text()
    page = Page(text)
    assert not {"script", "iframe", "object", "link", "form"} & {tag for tag, _ in page.elements}
    assert all(not name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert all(image["src"].startswith("data:image/") for image in page.named("img"))
    assert all(anchor["href"].startswith("#") for anchor in page.named("a"))
    assert "{{ 7 * 7 }}" in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    markdown = (tmp_path / "all.md").read_text()
    assert "<script" not in markdown
    assert not re.search(r"(?<!\\)[`\[]", markdown.replace("\\\\", ""))
    widths = {line.count("|") for line in markdown.split("\n\n")[2].splitlines() if line.startswith("|")}
    assert len(widths) == 1
    latex = (tmp_path / "all.tex").read_text()
    assert "\\input{/etc" not in latex
    assert "\\textbackslash{}input\\{\\_etc" in latex
    with (tmp_path / "all.csv").open(newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert "'=HYPERLINK(1)" in cells
    assert not any(cell.startswith(("=", "@", "\t")) for cell in cells)


def check_latex(text):
    """The structure of tables: environments and groups are closed, and every row has the columns of its head."""
    plain = re.sub(r"\\[{}%&#$_]", "", text)
    assert plain.count("{") == plain.count("}")
    for name in ("table", "tabular"):
        assert plain.count(f"\\begin{{{name}}}") == plain.count(f"\\end{{{name}}}") > 0
    for columns, body in re.findall(r"\\begin\{tabular\}\{@\{\}([lr]*)@\{\}\}(.*?)\\end\{tabular\}", plain, re.DOTALL):
        lines = [line for line in body.split("\n") if line.endswith(r"\\")]
        assert lines
        assert {line.count("&") + 1 for line in lines} == {len(columns)}
    assert not re.search(r"(?<!\\)[#_^]", plain.replace(r"\textasciicircum", ""))


def test_latex_compiles(dtrap, hostile, tmp_path):
    run = write_run(
        tmp_path / "run", "ISIC [x] 5-way 5-shot", {f"method {n}": [50.0 + n, 60.0, 55.0] for n in range(8)}, 3
    )
    others = [write_run(tmp_path / f"set{n}", f"Set {n} 5-way 5-shot", {"method 1": [5.0, 6.0]}) for n in range(10)]
    for runs in ([run, *others], [hostile]):
        status, _, err = dtrap("report", *runs, "--latex", "all.tex")
        assert (status, err) == (0, "")
        text = (tmp_path / "all.tex").read_text()
        check_latex(text)
        compiler = shutil.which("pdflatex")
        if compiler is None:
            continue
        head = "\\documentclass{article}\\usepackage{booktabs}\\usepackage{textcomp}\\begin{document}\n"
        (tmp_path / "paper.tex").write_text(f"{head}\\input{{all.tex}}\n\\end{{document}}\n")
        words = [compiler, "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, check=False)
        assert done.returncode == 0, done.stdout[-1500:]


def test_the_page_has_all_its_parts_and_stands_alone(dtrap, tmp_path):
    values = {f"method {n}": [50.0 + n, 60.0, 55.0 + n, 52.0] for n in range(8)}
    run = write_run(tmp_path / "run", "ISIC 5-way 5-shot", values, 4, more=full_row, backbone="ViT", tuner="LoRA")
    status, _, err = dtrap("report", run, "--html", "page.html")
    assert (status, err) == (0, "")
    text = (tmp_path / "page.html").read_text()
    page = Page(text)
    headings = page.text_of("h2")
    assert headings[0] == "Results"
    assert headings[-1] == "What was run"
    for part in ("Accuracy per episode", "Paired differences", "Gap shift", "Losses", "Classes", "lambda", "CoOp"):
        assert any(part in heading for heading in headings), part
    assert page.text_of("h1") == ["Results: ISIC 5-way 5-shot"]
    assert len(page.text_of("caption")) >= 4
    assert "Alignment: ISIC 5-way 5-shot" in page.text_of("caption")
    assert all(cell.get("scope") in ("col", "row") for cell in page.named("th"))
    assert all(image.get("alt") for image in page.named("img"))
    assert all(drawing.get("aria-label") or drawing.get("aria-hidden") for drawing in page.named("svg"))
    assert len(page.named("svg")) >= 6
    assert not re.search(r"""(?:src|href|url)\s*[=(]\s*["']?(?:https?:)?//""", text)
    assert "prefers-color-scheme: dark" in text
    assert "--protocol.save_features 2" in text
    assert "--protocol.save_predictions true" in text
    assert "--protocol.pictures 3" in text
    assert f"dtrap fit --config {run}/config.yaml --protocol.folder {run}_again" in text
    for name in values:
        assert name in " ".join(page.text_of("table"))


def grid_and_shots(folder):
    """A study over lambda and beta whose runs are whole, and one over shots with rows alone."""
    weights = [f"model.objective.{name}_weight" for name in ("anti_visual", "relation")]
    numbers = np.random.default_rng(0)
    cells = []
    for values in ((0.0, 0.0), (0.1, 0.0), (0.0, 3.0), (0.1, 3.0)):
        axes = {"sets": "isic_1shot.yaml", **dict(zip(weights, values, strict=True))}
        cells.append(cell_of(axes, ["both"], 12))
        settings = {"both": {"model": {"objective": {"init_args": dict(zip(weights, values, strict=True))}}}}
        accuracies = numbers.integers(30, 60, 12).astype(float).tolist()
        write_run(folder / cells[-1]["folder"], "ISIC", {"both": accuracies}, 12, "", full_row, settings)
    shots = [cell_of({"sets": "DTD", "shots": shot}, ["plain", "both"], 3, title="DTD") for shot in (1, 2)]
    for shot, cell in enumerate(shots):
        rows = [rows_of(arm, [40.0 + shot, 45.0, 47.0], zero_shot_accuracy=[30.0] * 3) for arm in ("plain", "both")]
        write_rows(folder / cell["folder"], [row for own in rows for row in own])
    grid = {"axes": {"sets": ["isic_1shot.yaml"], weights[0]: [0.0, 0.1], weights[1]: [0.0, 3.0]}, "arms": ["both"]}
    coop = {"axes": {"sets": ["DTD"], "shots": [1, 2]}, "arms": ["plain", "both"], "compare": "plain"}
    parts = [grid | {"name": "grid", "figure": "heat_map", "cells": cells}]
    write_study(folder, [*parts, coop | {"name": "shots", "figure": "coop", "cells": shots}])


def test_a_study_has_its_tables_published_numbers_and_figures(dtrap, tmp_path):
    ablation(tmp_path / "runs" / "study_ablation")
    grid_and_shots(tmp_path / "mine")
    status, out, err = dtrap("report", "ablation.yaml", "mine", *EVERY_FORM)
    assert (status, err) == (0, "")
    assert "needed" in out
    markdown = (tmp_path / "all.md").read_text()
    (line,) = [line for line in markdown.splitlines() if line.startswith("| both, published | 38.10")]
    assert line == "| both, published | 38.10 | 85.00 | 87.20 | 22.70 | 58.26 |"
    assert "**" in next(line for line in markdown.splitlines() if line.startswith("| both | "))
    check_latex((tmp_path / "all.tex").read_text())
    page = Page((tmp_path / "all.html").read_text())
    titles = page.text_of("strong")
    assert any("anti_visual_weight" in title for title in titles)
    assert any("shots" in title for title in titles)
    assert "both (anti_visual_weight 0.1, relation_weight 3.0)" in " ".join(page.text_of("table"))
    assert "dtrap study mine.yaml" in " ".join(page.text_of("code"))
    assert "Left out: the charts of" in out
    with (tmp_path / "all.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["study"] for row in rows} == {"mine"}
    assert {row["part"] for row in rows} == {"ablation", "grid", "shots"}
    # a run next to a study has its own table
    write_run(tmp_path / "run", "EuroSAT", {"svl-ra": [50.0, 60.0]})
    status, out, err = dtrap("report", "mine", "run", *EVERY_FORM)
    assert (status, err) == (0, "")
    assert "Accuracy in percent" in out
    status, _, err = dtrap("report", "trap.yaml")
    assert status == 2
    assert "trap.yaml is not a folder" in err


def test_the_same_runs_give_the_same_files(dtrap, tmp_path):
    write_run(tmp_path / "run", "ISIC", {"svl-ra": [50.0, 60.0, 55.0], "b": [40.0, 45.0, 48.0]}, 3, more=full_row)
    found = []
    for _ in range(2):
        dtrap("report", "run", OLD / "demo", *EVERY_FORM)
        found.append({name: (tmp_path / name).read_bytes() for name in FORMS.values()})
    assert found[0] == found[1]


def test_reports_do_not_load_torch(tmp_path):
    write_run(tmp_path / "run", "ISIC", {"svl-ra": [50.0, 60.0, 55.0], "b": [40.0, 45.0, 48.0]}, 3, more=full_row)
    features(tmp_path / "run", "svl-ra")
    predictions(tmp_path / "run", "svl-ra")
    words = ["report", "run", *EVERY_FORM]
    code = (
        f"import sys\nfrom dtrap.cli import main\ntry:\n    main({words})\nfinally:\n    print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
    assert "--protocol.save_features" not in (tmp_path / "all.html").read_text()


def features(run, method, episode=0):
    rng = np.random.default_rng(0)
    images, texts = (rng.normal(size=(n, 8)).astype(np.float32) for n in (9, 3))
    tensors = {f"{m}.{p}": v for m in ("before", "after") for p, v in (("image", images), ("text", texts))}
    tensors |= {"labels": np.arange(9) % 3, "is_query": np.arange(9) > 2}
    (run / "features").mkdir(exist_ok=True)
    path = run / "features" / f"episode_{episode:04d}_{method}.safetensors"
    save_file(tensors, path, {"class_names": json.dumps(["cat", "dog", "<i>owl"])})
    return path


def predictions(run, method, episode=0, **changed):
    tensors = {
        "scores": np.array([[5.0, 1.0, 0.0], [9.0, 0.0, 1.0]], dtype=np.float32),
        "labels": np.array([0, 2]),
        "thumbnails": np.full((1, 64, 64, 3), 200, dtype=np.uint8),
        "thumbnail_rows": np.array([1]),
    } | changed
    (run / "predictions").mkdir(exist_ok=True)
    path = run / "predictions" / f"episode_{episode:04d}_{method}.safetensors"
    names = {"class_names": json.dumps(["cat", "dog", "<i>owl"]), "images": json.dumps(["a.png", "<b>.png"])}
    save_file(tensors, path, names)
    return path


def test_pictures_features_and_errors_are_shown(dtrap, tmp_path):
    run = write_run(tmp_path / "run", "ISIC", {"svl-ra": [50.0, 60.0]}, more=full_row)
    features(run, "svl-ra")
    predictions(run, "svl-ra")
    (run / "pictures").mkdir()
    Image.effect_noise((2000, 1000), 90).convert("RGB").save(run / "pictures" / "episode_0001_svl-ra.png")
    status, _, err = dtrap("report", run, "--html", "page.html")
    assert (status, err) == (0, "")
    text = (tmp_path / "page.html").read_text()
    big, small = Page(text).named("img")[-2:]
    assert (big["width"], big["height"]) == ("900", "450")
    assert "episode 1" in big["alt"]
    assert "60.0 percent" in big["alt"]
    assert small["alt"] == "Test image of class <i>owl, classified as cat. File <b>.png."
    assert "&lt;i&gt;owl, taken for cat (100 %)" in text
    for image, size in ((big, (900, 450)), (small, (64, 64))):
        content = base64.b64decode(image["src"].partition(",")[2])
        assert Image.open(io.BytesIO(content)).size == size
    for option in ("save_features", "save_predictions", "pictures 3"):
        assert option not in text


def test_copied_rows_show_the_files_of_their_source(dtrap, tmp_path):
    source = write_run(tmp_path / "study" / "a", "ISIC", {"plain": [50.0]}, more=full_row)
    predictions(source, "plain")
    features(source, "plain")
    secret = write_run(tmp_path / "secret", "ISIC", {"plain": [50.0]})
    predictions(secret, "plain")
    (tmp_path / "study" / "study.json").write_text("{}")
    for number, (place, shown) in enumerate((("a", 1), ("../secret", 0), ("nowhere", 0))):
        origin = full_row("plain", 0) | {"same_as": "plain", "copied_from": place}
        copy = write_run(tmp_path / "study" / f"b{number}", "ISIC", {"base": [50.0]}, more=origin)
        status, _, err = dtrap("report", copy, "--html", "page.html")
        assert (status, err) == (0, "")
        text = (tmp_path / "page.html").read_text()
        assert text.count("Test image of class") == shown
        assert ("No features are saved" in text) == (not shown)


def test_files_that_are_not_what_they_should_be_are_left_out(dtrap, tmp_path):
    secret = tmp_path / "secret.png"
    Image.new("RGB", (10, 10)).save(secret)
    run = write_run(tmp_path / "run", "ISIC", {"svl-ra": [50.0] * 6}, 6)
    for folder in ("pictures", "features", "predictions"):
        (run / folder).mkdir()
    pictures = run / "pictures"
    (pictures / "episode_0000_svl-ra.png").symlink_to(secret)
    (pictures / "episode_0001_svl-ra.png").write_text("<svg onload=alert(1)>")
    bomb = io.BytesIO()
    Image.new("1", (9000, 9000)).save(bomb, "PNG")
    (pictures / "episode_0002_svl-ra.png").write_bytes(bomb.getvalue())
    Image.new("RGB", (8, 8)).save(pictures / "episode_0003_svl-ra.png", "GIF")
    (run / "features" / "episode_0000_svl-ra.safetensors").write_bytes(b"\x80\x04cos\nsystem\n")
    predictions(run, "svl-ra", 0, thumbnail_rows=np.array([7]))
    predictions(run, "svl-ra", 1, thumbnails=np.zeros((1, 8, 8, 3), dtype=np.uint8))
    predictions(run, "svl-ra", 2, labels=np.array([0]))
    status, _, err = dtrap("report", run, "--html", "page.html")
    assert (status, err) == (0, "")
    text = (tmp_path / "page.html").read_text()
    assert Page(text).named("img") == []
    assert "onload" not in text
    for place in ("pictures/episode_0001", "pictures/episode_0002", "pictures/episode_0003", "features/episode_0000"):
        assert f"{run}/{place}_svl-ra" in text
    assert f"{run}/pictures/episode_0000" not in text
    assert text.count("is left out: ") == 7


def test_a_method_name_leads_to_no_file_elsewhere(dtrap, tmp_path):
    Image.new("RGB", (10, 10)).save(tmp_path / "secret.png")
    run = write_run(tmp_path / "run", "ISIC", {"x/../../../secret": [50.0]}, 1)
    (run / "pictures" / "episode_0000_x").mkdir(parents=True)
    status, _, err = dtrap("report", run, "--html", "page.html")
    assert (status, err) == (0, "")
    assert Page((tmp_path / "page.html").read_text()).named("img") == []
