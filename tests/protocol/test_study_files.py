"""Study files: what they may hold, and what is said of one that holds something else."""

import pytest
from dtrap.errors import DtrapError
from dtrap.protocol.studies.cells import cells_of
from dtrap.protocol.studies.file import find_study, read_study, shipped_studies


@pytest.fixture
def read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def read(text, name="mine.yaml"):
        (tmp_path / name).write_text(text)
        return read_study(tmp_path / name)

    return read


def test_the_cells_are_the_product_of_the_axes_and_have_names_of_their_own(read):
    study = read(
        "# Two tables\nsets: [isic_1shot.yaml, coop/dtd_1shot.yaml]\ntuners: [[], tuners/coop.yaml]\nshots: [1, 5]\n"
        "seeds: [1]\ngrid: {stage_switch.stop: [2/5, 3/5]}\narms: {plain: methods/baseline.yaml, both: []}\n"
    )
    cells = cells_of(study)
    assert study.title == "Two tables"
    assert len(cells) == 16
    assert cells[0].name == "isic_default_1shot_seed1_stop_2_5"
    assert cells[-1].name == "coop_dtd_coop_5shot_seed1_stop_3_5"
    assert cells[-1].axes == {
        "sets": "coop/dtd_1shot.yaml", "tuners": "tuners/coop.yaml", "shots": 5, "seeds": 1, "stage_switch.stop": "3/5",
    }  # fmt: skip
    assert {cell.name: cell.episodes for cell in cells}[cells[0].name] == 800
    assert cells[-1].episodes == 400
    assert {cell.episodes for cell in cells_of(study, episodes=7)} == {7}
    assert {cell.episodes for cell in cells_of(study, ["--protocol.episodes", "9"])} == {None}
    assert study.parts[0].compare == "plain"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("set: [demo.yaml]", ["unknown key 'set'", "Did you mean 'sets'?"]),
        ("arms: {a: []}", ["sets: found nothing", "expected a list of configs"]),
        ("sets: demo.yaml", ["sets: found 'demo.yaml'", "expected a list"]),
        ("sets: []", ["sets: found []", "at least one value"]),
        ("sets: [3]", ["sets: found 3", "expected a config such as isic_1shot.yaml"]),
        ("sets: [nope.yaml]", ["sets: config 'nope.yaml' not found"]),
        ("sets: [[]]", ["sets: found []", "expected a config"]),
        ("sets: [demo.yaml, demo.yaml]", ["sets: 'demo.yaml' is given twice"]),
        ("sets: [demo.yaml]\nsets: [demo.yaml]", ["'sets' is given twice"]),
        ("sets: [demo.yaml]\narms: {a: [], a: []}", ["'a' is given twice"]),
        ("sets: [demo.yaml]\narms: {a: [], A: []}", ["two arms are called like 'a'"]),
        ("sets: [demo.yaml]\narms: {no: []}", ["arms: found False", "a text as the name"]),
        ("sets: [demo.yaml]\narms: {a/b: []}", ["arms: found 'a/b'", "without '/'"]),
        (f"sets: [demo.yaml]\narms: {{{'x' * 300}: []}}", ["at most 120 bytes"]),
        ("sets: [demo.yaml]\narms: [a]", ["arms: found ['a']", "expected arms such as"]),
        ("sets: [demo.yaml]\narms: {a: methods/nope.yaml}", ["arms.a: config 'methods/nope.yaml' not found"]),
        ("sets: [demo.yaml]\narms: {a: [--data.shot]}", ["arms.a: found '--data.shot'", "a value after the option"]),
        ("sets: [demo.yaml]\narms: {a: [--protocol.folder, x]}", ["--protocol.folder cannot be given in a study"]),
        ("sets: [demo.yaml]\narms: {a: [], b: []}\ncompare: c", ["compare: found 'c'", "expected one of a, b."]),
        ("sets: [demo.yaml]\nshots: [one]", ["shots: found 'one'", "whole numbers of at least 1"]),
        ("sets: [demo.yaml]\nshots: [true]", ["shots: found True"]),
        ("sets: [demo.yaml]\nseeds: []", ["seeds: found []"]),
        ("sets: [demo.yaml]\nseeds: [1, 1]", ["seeds: 1 is given twice"]),
        ("sets: [demo.yaml]\ngrid: {rank: [1]}", ["grid: found 'rank'", "dotted options"]),
        ("sets: [demo.yaml]\ngrid: {model.tuner.rank: 4}", ["grid.model.tuner.rank: found 4", "a list of values"]),
        ("sets: [demo.yaml]\ngrid: {model.tuner.rank: []}", ["grid.model.tuner.rank: found []"]),
        ("sets: [demo.yaml]\ngrid: {data.seed: [1]}", ["data.seed cannot be given in a grid", "`seeds:`"]),
        ("sets: [demo.yaml]\nepisodes: 0", ["episodes: found 0", "at least 1"]),
        ("sets: [demo.yaml]\nfigure: pie", ["figure: found 'pie'", "expected one of heat_map, coop."]),
        ("sets: [demo.yaml]\nmeasures: accuracy", ["measures: found 'accuracy'", "a list of names"]),
        ("sets: [demo.yaml]\nmeasures: [acuracy]", ["measures: found 'acuracy'", "Did you mean 'accuracy'?"]),
        ("sets: [demo.yaml]\nmeasures: [query.gapdrop]", ["Did you mean 'query.gap_drop'?"]),
        ("sets: [demo.yaml]\npublished: mein", ["published: found 'mein'", "Did you mean 'main'?"]),
        ("sets: [demo.yaml]\nfigure: coop", ["'coop' is drawn over shots", "`shots:`"]),
        ("sets: [demo.yaml]\nfigure: heat_map", ["'heat_map' is drawn over two options", "`grid:`"]),
        ("parts: []", ["parts: found []", "expected a mapping"]),
        ("parts: {a: 3}", ["parts.a: found 3"]),
        ("parts: {a: nope}", ["study 'nope' not found", "expected one of"]),
        ("parts: {a: {sets: [demo.yaml], parts: {}}}", ["parts.a has parts of its own", "cannot be nested"]),
        ("parts: {a: {sets: [demo.yaml]}, A: {sets: [demo.yaml]}}", ["several have names like 'a'"]),
        ("- a", ["expected keys such as `sets:`"]),
        ("", ["expected keys such as `sets:`", "found nothing"]),
        ("sets: [demo.yaml", ["not readable as YAML"]),
        ("model: {tuner: x}", ["is the config of a run", "dtrap fit --config"]),
        ("a: &a [x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a]\n" + "".join(
            f"{chr(c + 1)}: &{chr(c + 1)} [{', '.join([f'*{chr(c)}'] * 9)}]\n" for c in range(98, 108)),
         ["not readable as YAML", "aliases stand for more than"]),
    ],
)  # fmt: skip
def test_mistakes_name_file_key_value_and_what_was_expected(read, text, told):
    with pytest.raises(DtrapError) as raised:
        read(text)
    message = str(raised.value)
    assert "mine.yaml" in message
    assert len(message.splitlines()) <= 5
    for part in told:
        assert part in message


def test_every_shipped_study_is_readable_and_short():
    assert "ablation" in shipped_studies()
    for name in shipped_studies():
        path = find_study(name)
        assert find_study(f"studies/{name}.yaml") == find_study(f"{name}.yaml") == path
        assert cells_of(read_study(path))
        assert len(path.read_text().splitlines()) <= 30
