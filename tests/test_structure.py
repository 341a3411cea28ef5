"""The order in which the parts of the package import each other, the files of the wheel, and the length of files."""

import ast
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import dtrap
import pytest

ROOT = Path(dtrap.__file__).resolve().parent
OUTSIDE = {"tests", "benchmarks", "tools", "docs"}
LONGEST_FILE = 400

# From top to bottom. A part imports from itself and from the layers below it. Imports within functions and imports for
# type checkers count like all others. "dtrap" is the package's own __init__.py.
LAYERS = (
    ("__main__",),
    ("cli",),
    ("commands",),
    ("protocol", "datamodules.acquisition", "datamodules.inspection"),
    ("lightning_modules", "datamodules", "callbacks", "configs", "assets"),
    ("metrics",),
    ("console", "drawing", "keywords", "signals"),
    ("parsing",),
    ("files",),
    ("errors",),
    ("dtrap",),
)
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}


def package_files():
    """All Python files of the package, relative to its folder."""
    files = (path.relative_to(ROOT) for path in ROOT.rglob("*.py"))
    return sorted(file for file in files if (ROOT / file.parts[0] / "__init__.py").exists() or len(file.parts) == 1)


def module_name(file):
    """Name below dtrap: "protocol.runner" of protocol/runner.py, "dtrap" of __init__.py."""
    return ".".join(file.with_suffix("").parts).removesuffix("__init__").rstrip(".") or "dtrap"


def part_of(module):
    """The part of the table that a module belongs to; a subpackage with a row of its own comes before its parent."""
    parts = [part for part in LEVEL if module == part or module.startswith(f"{part}.")]
    assert parts, f"{module} is in none of LAYERS; add it to tests/test_structure.py"
    return max(parts, key=len)


def imported(file, modules):
    """Yield line and name of each module of the package that a file imports."""
    package = file.with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ["dtrap", *package[: len(package) + 1 - node.level]] if node.level else []
            start = ".".join([*base, node.module] if node.module else base)
            names = [f"{start}.{name.name}" for name in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "dtrap":
                below = name.removeprefix("dtrap").lstrip(".")
                # The last word is a module or a name within one.
                yield node.lineno, below if below in modules else below.rpartition(".")[0] or "dtrap"


def package_imports():
    """File, line, part that imports and module that is imported, for each import from one part to another."""
    files = package_files()
    modules = {module_name(file) for file in files}
    for file in files:
        part = part_of(module_name(file))
        for line, module in imported(file, modules):
            if part_of(module) != part:
                yield file, line, part, module


def test_parts_import_from_the_layers_below_only():
    found = list(package_imports())
    wrong = [
        f"{file}:{line}: {part} imports {module}"
        for file, line, part, module in found
        if LEVEL[part_of(module)] <= LEVEL[part]
    ]
    assert not wrong, "\n".join(wrong)
    # What proves that imports within functions are seen: the commands are imported where they are run.
    assert ("cli", "commands") in {(part, module) for _, _, part, module in found}


def tracked_files():
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [Path(name) for name in names.split("\0") if name and (ROOT / name).exists()]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
def test_the_wheel_holds_the_tracked_files_of_the_package(tmp_path):
    tracked = tracked_files()
    for file in tracked:
        (tmp_path / "copy" / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / file, tmp_path / "copy" / file)
    build = "import setuptools.build_meta as backend, sys; backend.build_wheel(sys.argv[1])"
    command = [sys.executable, "-c", build, str(tmp_path)]
    built = subprocess.run(command, cwd=tmp_path / "copy", capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    [wheel] = tmp_path.glob("*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    belongs = {
        f"dtrap/{file.as_posix()}"
        for file in tracked
        if (len(file.parts) == 1 and (file.suffix == ".py" or file.name == "py.typed"))
        or (len(file.parts) > 1 and file.parts[0] not in OUTSIDE and not file.parts[0].startswith("."))
    }
    assert sorted(held - belongs) == []
    assert sorted(belongs - held) == []


def test_no_file_is_too_long():
    lengths = {str(file): len((ROOT / file).read_text(encoding="utf-8").splitlines()) for file in package_files()}
    assert {file: length for file, length in lengths.items() if length > LONGEST_FILE} == {}
