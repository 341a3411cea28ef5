"""Class prompts from templates and descriptions, and what becomes of them."""

import json

import pytest
import torch
from dtrap.errors import DtrapError
from dtrap.lightning_modules import FewShotClassifier
from dtrap.lightning_modules.text_head import FrozenTextFeatures, average_prompts, class_prompts, read_descriptions
from dtrap.lightning_modules.tuners import CLIPAdapter

NAMES = ["annual_crop", "river"]


def test_every_class_has_one_prompt_of_each_template(tiny_backbone):
    prompts = class_prompts(NAMES, ["a photo of a {}.", "{} from above."], tiny_backbone)
    assert prompts.prompts == (
        "a photo of a annual crop.", "annual crop from above.", "a photo of a river.", "river from above.",
    )  # fmt: skip
    assert prompts.per_class == (2, 2)
    assert torch.equal(prompts.tokens, tiny_backbone.tokenize(list(prompts.prompts)))


def test_descriptions_take_the_templates_place_and_may_be_of_any_number(tiny_backbone):
    descriptions = {"annual_crop": ["fields of {}."], "river": ["a {}.", "water.", "a blue band."], "lake": ["x"]}
    prompts = class_prompts(NAMES, "a photo of a {}.", tiny_backbone, descriptions)
    assert prompts.prompts == ("fields of annual crop.", "a river.", "water.", "a blue band.")
    assert prompts.per_class == (1, 3)
    with torch.no_grad():
        rows = tiny_backbone.encode_text(prompts.tokens)
    unit = rows / rows.norm(dim=1, keepdim=True)
    expected = torch.stack([unit[0], (unit[1] + unit[2] + unit[3]) / 3])
    torch.testing.assert_close(average_prompts(rows, prompts.per_class), expected)
    module = FewShotClassifier(tiny_backbone, descriptions=descriptions)
    module.set_classes(NAMES, "ignored {}")
    torch.testing.assert_close(module.text_features(), expected)


def test_a_class_without_description_is_named(tiny_backbone):
    with pytest.raises(DtrapError, match="none for the class 'river'"):
        class_prompts(NAMES, "{}", tiny_backbone, {"annual_crop": ["x"], "River": ["y"]})


def test_too_long_a_prompt_names_the_class(tiny_backbone):
    with pytest.raises(DtrapError, match=r"class 'river': Prompt '.*has 40 tokens"):
        class_prompts(NAMES, "{}", tiny_backbone, {"annual_crop": ["crop"], "river": ["ok", "water " * 38]})


@pytest.mark.parametrize("ending", ["yaml", "json"])
def test_descriptions_are_read_from_a_file(tmp_path, ending):
    path = tmp_path / f"texts.{ending}"
    path.write_text(json.dumps({"river": ["a {}.", "water."], "lake": "one sentence"}))
    assert read_descriptions(path) == {"river": ["a {}.", "water."], "lake": ["one sentence"]}


@pytest.mark.parametrize(
    "content", ["", "[a, b]", "{river: []}", "{river: [1]}", "{river: {a: b}}", "{river: ['']}", "{"]
)
def test_files_of_another_form_are_named(tmp_path, tiny_backbone, content):
    path = tmp_path / "texts.yaml"
    path.write_text(content)
    with pytest.raises(DtrapError, match=r"texts\.yaml.*Expected a YAML or JSON file"):
        read_descriptions(path)
    with pytest.raises(DtrapError, match=r"absent\.yaml: not readable"):
        FewShotClassifier(tiny_backbone, descriptions=str(tmp_path / "absent.yaml"))


def test_a_prompt_is_encoded_once_for_all_episodes(tiny_backbone, monkeypatch):
    encoded = []
    original = type(tiny_backbone).encode_text
    monkeypatch.setattr(
        type(tiny_backbone), "encode_text", lambda self, tokens: encoded.append(len(tokens)) or original(self, tokens)
    )
    frozen, device = FrozenTextFeatures(), torch.device("cpu")
    first = frozen(tiny_backbone, class_prompts(["cat", "dog"], "{}", tiny_backbone), device)
    again = frozen(tiny_backbone, class_prompts(["dog", "cow", "cat"], "{}", tiny_backbone), device)
    assert encoded == [1, 1, 1]
    assert torch.equal(first, again[[2, 0]])


@pytest.mark.parametrize("name", ["", " ", "_", "__ _", "\u200b", "\n", "\ufeff"])
def test_a_class_name_without_a_visible_character_is_refused(tiny_backbone, name):
    with pytest.raises(DtrapError, match="class name 2 of 2 is "):
        class_prompts(["river", name], "a photo of a {}.", tiny_backbone)
    assert class_prompts(["+", "-", "河"], "a photo of a {}.", tiny_backbone).per_class == (1, 1, 1)


@pytest.mark.parametrize("template", ["a {cls} of {}", "{cls}", "{0} {}", "{{}}", "a {} {", "a photo", "", None, 3])
def test_a_template_that_would_say_nothing_of_the_class_is_refused(tiny_backbone, template):
    with pytest.raises(DtrapError, match="template is "):
        class_prompts(NAMES, [template], tiny_backbone)
    if template is not None:
        module = FewShotClassifier(tiny_backbone, template=[template])
        with pytest.raises(DtrapError, match="template is "):
            module.set_classes(NAMES)


def test_an_empty_template_of_the_module_does_not_stand_for_the_datas(tiny_backbone):
    for empty in ("", []):
        with pytest.raises(DtrapError, match="template is "):
            FewShotClassifier(tiny_backbone, CLIPAdapter(), template=empty).set_classes(NAMES, "a photo of a {}.")


@pytest.mark.parametrize("sentences", [[], [""], [" "], [3], 3, None, ["a {cls}"], ""])
def test_descriptions_of_a_mapping_are_checked_as_those_of_a_file(tiny_backbone, sentences):
    with pytest.raises(DtrapError, match=r"descriptions: .*class 'river'"):
        FewShotClassifier(tiny_backbone, descriptions={"annual_crop": ["x"], "river": sentences})


def test_one_sentence_of_a_mapping_is_one_prompt(tiny_backbone):
    module = FewShotClassifier(tiny_backbone, descriptions={"annual_crop": "fields", "river": ["water"]})
    module.set_classes(NAMES)
    assert module.prompts.prompts == ("fields", "water")
