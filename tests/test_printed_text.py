"""Names from others: shown escaped on the console, and no formula in a spreadsheet."""

import csv
import io
import json
import logging
import os
import re
import shutil
import warnings
from pathlib import Path

import pytest
from dtrap.console import SafeConsole, print_table, say
from dtrap.errors import visible
from dtrap.protocol.loggers import ProtocolLogger
from dtrap.protocol.run_folder import RunFolder
from layouts import picture
from rich.table import Table
from rich.text import Text
from safetensors import safe_open
from safetensors.torch import load_file, save_file

OLD = Path(__file__).parent / "data" / "old_run" / "demo"
HOSTILE = "\x1b[2J[red]\x07a\u202eb\nc\r\x9bd\u2028e\udcffü"
SHOWN = "\\x1b[2J[red]\\x07a\\u202eb\\nc\\r\\x9bd\\u2028e\\udcffü"


def test_control_characters_are_shown_and_other_text_stays():
    assert visible(HOSTILE) == SHOWN
    for text in ("Größe · 51.2 ± 0.6 %", "日本語", "a\u200cb", "👩\u200d🔬", "[red]x[/red]", "C:\\x"):
        assert visible(text) == text
    assert visible("a\nb\r", keep="\n") == "a\nb\\r"


@pytest.mark.parametrize("terminal", [False, True])
def test_lines_and_tables_are_printed_without_control_characters_and_markup(terminal):
    out = io.StringIO()
    console = SafeConsole(file=out, force_terminal=terminal, width=80, color_system="truecolor" if terminal else None)
    say(console, HOSTILE)
    table = Table()
    table.add_column(Text("name\x1b[2J"))
    table.add_row(Text(HOSTILE))
    print_table(table, console)
    console.print(Text(HOSTILE), soft_wrap=True)
    first, *rest = out.getvalue().splitlines()
    assert first == SHOWN
    assert "name\\x1b[2J" in rest[1]
    assert all("[red]" in line for line in rest if "\\u202e" in line)
    codes = re.compile(r"\x1b\[[0-9;]*m")  # of the console itself
    assert all(codes.sub("", line).isprintable() for line in [first, *rest])


def test_errors_warnings_and_log_lines_are_escaped(dtrap, capsys, tmp_path):
    (tmp_path / "pictures\x1b[2J\rx").mkdir()
    status, _, err = dtrap("fit", "--config", "folder.yaml", "--data.root", "pictures\x1b[2J\rx")
    assert status == 2
    assert "pictures\\x1b[2J\\rx" in err
    assert err.strip().isprintable()
    assert "\x1b" not in warnings.formatwarning("a\x1b[2J", UserWarning, "file.py", 1)
    logging.lastResort.emit(logging.makeLogRecord({"msg": "a\x1b[2J", "levelno": logging.WARNING}))
    assert "\x1b" not in capsys.readouterr().err


NAMES = ["=1+2", "@x\x1b[2J", " \u200b\uff1d1;-2"]
ESCAPED = ["'=1+2", "'@x\x1b[2J", "' \u200b\uff1d1;'-2"]


@pytest.fixture
def hostile(tmp_path):
    """An adapter whose classes have names that do something elsewhere, and pictures of such names."""
    folder = Path(shutil.copytree(OLD, tmp_path / "received"))
    adapter = next(folder.glob("adapters/*.safetensors"))
    card = adapter.with_suffix(".json")
    card.write_text(json.dumps(json.loads(card.read_text()) | {"class_names": NAMES, "method": "[red]m\x1b[31m"}))
    (tmp_path / "-new").mkdir()
    picture(1).save(tmp_path / "-new" / "1.png")
    picture(1).save(os.fsencode(tmp_path / "-new") + b"/caf\xe9.png", format="PNG")
    return adapter


def table(path):
    return list(csv.reader(path.read_text(encoding="utf-8").splitlines()))


def test_predictions_have_no_formulas_unless_asked_for(dtrap, hostile, tmp_path):
    status, out, err = dtrap("predict", "--adapter", hostile, "--images=-new")
    assert status == 0, err
    assert "\x1b" not in out + err
    header, *rows = table(tmp_path / "predictions.csv")
    assert header == ["path", "label", "score", "runner_up", "runner_up_score", *ESCAPED]
    assert sorted(row[0] for row in rows) == ["'-new/1.png", "'-new/caf\\udce9.png"]
    assert {cell for row in rows for cell in (row[1], row[3])} <= set(header[5:])
    assert all(float(cell) >= 0 for row in rows for cell in row[5:])
    words = ["--overwrite", "--escape_formulas", "false"]
    status, _, err = dtrap("predict", "--adapter", hostile, "--images=-new", *words)
    assert status == 0, err
    assert table(tmp_path / "predictions.csv")[0][5:] == NAMES


def test_a_hostile_card_is_shown_escaped(dtrap, hostile):
    status, out, err = dtrap("test", "--adapter", hostile)
    assert status == 2
    assert "@x\\x1b[2J" in err
    assert (out + err).replace("\n", "").isprintable()
    with safe_open(hostile, "pt") as file:
        metadata = file.metadata()
    save_file({f"{name}\x1b[2J": value for name, value in load_file(hostile).items()}, hostile, metadata=metadata)
    status, out, err = dtrap("predict", "--adapter", hostile, "--images=-new")
    assert status == 2
    assert "\x1b" not in out + err


def test_a_wandb_run_has_no_control_characters_in_its_names(tmp_path):
    methods = {"m\x1b": {}}
    logger = ProtocolLogger(False, RunFolder(tmp_path / "a\x1b"), methods, print, "group\n", ["tag\u202e"])
    defaults = logger.wandb_defaults
    assert [defaults[key] for key in ("name", "group", "job_type")] == ["a\\x1b", "group\\n", "m\\x1b"]
    assert defaults["tags"] == ["tag\\u202e"]
