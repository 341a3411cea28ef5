"""Every shipped study: short, parsed, and each arm a method of its own."""

from fractions import Fraction
from functools import cache

import pytest
from dtrap.commands.study_parsing import StudyParser, options_set
from dtrap.configs import SHIPPED
from dtrap.protocol.measured import MEASURES
from dtrap.protocol.studies.cells import cells_of
from dtrap.protocol.studies.file import find_study, read_study, shipped_studies
from dtrap.protocol.studies.published import PAPER_SETS, PUBLISHED, set_key
from dtrap.protocol.studies.resolve import Resolver

NAMES = shipped_studies()


@cache
def resolver():
    return Resolver(StudyParser(None, anywhere=True), options_set)


def study_of(name):
    return read_study(find_study(name))


def objective(arm):
    values = arm.values()
    terms = values["model"]["objective"]["init_args"]
    stage = values["stage_switch"]
    weights = [terms[key] for key in ("anti_visual_weight", "relation_weight", "visual_term")]
    return [*weights, Fraction(str(stage["start"])), Fraction(str(stage["stop"]))]


@pytest.mark.parametrize("name", NAMES)
def test_a_study_is_short_and_says_what_it_is(name):
    lines = (SHIPPED / "studies" / f"{name}.yaml").read_text().splitlines()
    assert lines[0].startswith("# ")
    assert len(lines) <= (30 if name == "demo" else 18)
    assert max(map(len, lines)) <= 160


@pytest.mark.parametrize("name", NAMES)
def test_the_last_cell_of_each_part_is_valid_and_its_arms_differ(name):
    study = study_of(name)
    for part in study.parts:
        *_, cell = (cell for cell in cells_of(study) if cell.part == part.name)
        found = resolver().resolve(cell)
        assert len(set(found.arm_keys)) == len(found.arm_keys)
        assert part.compare in [arm.name for arm in found.arms]
        for measure in part.measures:
            key = measure.rpartition(".")[2].partition("@")[0].removeprefix("zero_shot_")
            assert key in MEASURES


def test_the_arms_are_the_methods_of_the_paper():
    arms = {}
    for name in ("ablation", "trap", "variants", "timing"):
        found = resolver().resolve(cells_of(study_of(name))[0])
        arms |= {(name, arm.name): objective(arm) for arm in found.arms}
    stage = [Fraction(0), Fraction("3/5")]
    none, svl = [0.0, 0.0, "anti_visual", *stage], [None, 0.0, "anti_visual", *stage]
    both = [None, 3.0, "anti_visual", *stage]
    assert arms == {
        ("ablation", "plain"): none,
        ("ablation", "svl"): svl,
        ("ablation", "ra"): [0.0, 3.0, "anti_visual", *stage],
        ("ablation", "both"): both,
        ("trap", "plain"): none,
        ("trap", "visual"): [None, 0.0, "visual", *stage],
        ("trap", "svl"): svl,
        ("trap", "both"): both,
        ("trap", "stopped"): none,
        ("variants", "plain"): none,
        ("variants", "shuffled"): svl,
        ("variants", "negated"): [None, 0.0, "negated_visual", *stage],
        ("variants", "noise"): [None, 0.0, "noise", *stage],
        ("timing", "never"): none,
        ("timing", "begin"): both,
        ("timing", "middle"): [None, 3.0, "anti_visual", Fraction("1/5"), Fraction("4/5")],
        ("timing", "end"): [None, 3.0, "anti_visual", Fraction("2/5"), 1],
        ("timing", "always"): [None, 3.0, "anti_visual", 0, 1],
    }


def test_the_stopped_arm_ends_at_the_loss_of_both():
    found = resolver().resolve(cells_of(study_of("trap"))[0])
    names = [arm.name for arm in found.arms]
    callbacks = {arm.name: arm.values()["trainer"]["callbacks"] for arm in found.arms}
    assert [each["class_path"].rpartition(".")[2] for each in callbacks["both"]] == ["AlignmentMonitor"]
    monitor, stop = callbacks["stopped"]
    assert monitor["class_path"].endswith("AlignmentMonitor")
    assert stop["init_args"]["reference"] == "both"
    assert names.index("both") < names.index("stopped")


def test_the_studies_cover_the_papers_settings():
    cells = cells_of(study_of("main"))
    assert {cell.episodes for cell in cells} == {800, 400}
    assert len(cells) == 4 * 3 * 2
    grid = cells_of(study_of("sensitivity"))
    assert any(list(cell.values.values()) == [0.1, 3.0] for cell in grid), "the paper's weights are in the grid"
    panels = cells_of(study_of("coop11"))
    assert len({cell.axes["sets"] for cell in panels}) == 11
    assert {cell.values["data.shot"] for cell in panels} == {1, 2, 4, 8, 16}
    tuners = {cell.axes["tuners"] for cell in cells_of(study_of("tuners"))}
    shipped = {f"tuners/{path.name}": path.read_text() for path in (SHIPPED / "tuners").glob("*.yaml")}
    assert tuners == {name for name, text in shipped.items() if "tuners.PEFT" not in text}


@pytest.mark.parametrize("name", ["main", "ablation", "trap"])
def test_the_published_numbers_belong_to_arms_and_sets_of_their_study(name):
    (part,) = study_of(name).parts
    table = PUBLISHED[name]
    assert part.published == name
    assert table.measure in part.measures
    assert {arm for _, _, arm in table.values} <= {arm.name for arm in part.arms}
    assert {set_key(choice.name) for choice in part.configs["sets"]} == PAPER_SETS
    for numbers in table.values.values():
        assert numbers.keys() <= {*PAPER_SETS, "mean"}


@pytest.mark.parametrize(
    ("more", "options", "expected"),
    [
        ("", [], ("plain", "both")),
        ("", ["--trainer.accelerator", "gpu", "--data.root=/data"], ("plain", "both")),
        ("", ["--config", "backbones/pe_core.yaml"], ()),
        ("", ["--data.shot=5"], ()),
        ("options: [--trainer.max_epochs, 2]", [], ()),
        ("backbones: {clip: backbones/pe_core.yaml}", [], ()),
        ("backbones: [backbones/clip.yaml]", [], ("plain", "both")),
        ("tuners: {lora: [tuners/lora.yaml, --model.tuner.rank=1]}", [], ()),
    ],
)
def test_published_numbers_belong_to_the_papers_setting_alone(tmp_path, more, options, expected):
    path = tmp_path / "mine.yaml"
    arms = "arms: {plain: methods/baseline.yaml, both: [], ra: [--model.objective.relation_weight=9]}"
    path.write_text(f"sets: [isic_1shot.yaml]\n{arms}\npublished: ablation\n{more}\n")
    (cell,) = cells_of(read_study(path), options)
    assert cell.as_published == expected


@pytest.mark.parametrize("name", ["main", "ablation", "trap"])
def test_every_arm_of_a_shipped_study_has_its_published_number(name):
    study = study_of(name)
    table = PUBLISHED[name].values
    for cell in cells_of(study):
        assert {arm for _, _, arm in table} <= set(cell.as_published)


def test_the_published_means_are_those_of_the_sets():
    for table in (PUBLISHED["main"], PUBLISHED["ablation"]):
        for numbers in table.values.values():
            own = [numbers[name] for name in PAPER_SETS if name in numbers]
            assert not own or sum(own) / 4 == pytest.approx(numbers["mean"], abs=0.15)


def test_the_demo_runs_every_study_of_the_paper_on_the_embedded_data():
    study = study_of("demo")
    names = {part.name for part in study.parts}
    assert {*NAMES} - {"demo", "imbalance", "near", "prompts", "switch", "weights"} == names
    cells = cells_of(study)
    assert {cell.words[:2] for cell in cells} == {("--config", "demo.yaml")}
    long = {"trap", "ablation", "variants", "timing"}
    assert {(cell.part in long, cell.episodes) for cell in cells} == {(True, 20), (False, 4)}
    assert study.parts[0].name == "trap", "its rows have what AlignmentMonitor measures; those of others are copied"
