"""Class prompts from templates and descriptions, and what becomes of them."""

import json

import pytest
import torch
from dtrap.errors import DtrapError
from dtrap.lightning_modules import FewShotClassifier
from dtrap.lightning_modules.text_head import FrozenTextFeatures, average_prompts, class_prompts, read_descriptions
from dtrap.lightning_modules.tuners import CLIPAdapter, CoOp, MaPLe
from layouts import make_folder

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


@pytest.mark.parametrize(
    ("first", "second"),
    [("Cardigan", "cardigan"), ("annual_crop", "annual crop"), ("annual  crop", "annual crop"), (" river", "river ")],
)
def test_classes_whose_names_are_one_text_for_the_model_are_refused_and_both_named(tiny_backbone, first, second):
    module = FewShotClassifier(tiny_backbone)
    with pytest.raises(DtrapError, match="cannot be told apart") as caught:
        module.set_classes(["lake", first, second], "a photo of a {}.")
    assert repr(first) in str(caught.value)
    assert repr(second) in str(caught.value)
    assert "--data.class_names" in str(caught.value)
    assert "--model.descriptions" in str(caught.value)
    assert module.prompts is None


def test_punctuation_tells_classes_apart_unless_the_tokenizer_removes_it(tiny_backbone, monkeypatch):
    names = ["T-shirt", "T shirt"]
    assert len(class_prompts(names, "a {}", tiny_backbone).tokens) == 2
    plain = type(tiny_backbone).tokenize
    monkeypatch.setattr(
        type(tiny_backbone), "tokenize", lambda self, texts: plain(self, [text.replace("-", " ") for text in texts])
    )
    with pytest.raises(DtrapError, match="'T-shirt' and 'T shirt' cannot be told apart"):
        class_prompts(names, "a {}", tiny_backbone)


@pytest.mark.parametrize(
    "sentences", [["a bird.", "a small bird."], ["a small bird.", "a bird."], ["A Bird.", "a small bird."]]
)
def test_the_same_descriptions_in_any_order_are_refused(tiny_backbone, sentences):
    descriptions = {"robin": ["a bird.", "a small bird."], "wren": sentences}
    with pytest.raises(DtrapError, match="'robin' and 'wren' cannot be told apart"):
        class_prompts(["robin", "wren"], "{}", tiny_backbone, descriptions)


def test_a_description_more_tells_classes_apart_but_not_a_repeated_one(tiny_backbone):
    descriptions = {"robin": ["a bird."], "wren": ["a bird.", "a brown bird."], "tit": ["a bird.", "a bird."]}
    assert len(class_prompts(["robin", "wren"], "{}", tiny_backbone, descriptions).tokens) == 3
    with pytest.raises(DtrapError, match="'robin' and 'tit' cannot be told apart"):
        class_prompts(["robin", "tit"], "{}", tiny_backbone, descriptions)


@pytest.mark.parametrize("tuner", [CoOp(context_tokens=2), CoOp(context_tokens=2, class_specific=True), MaPLe(depth=1)])
@pytest.mark.filterwarnings("ignore:.*learns its own prompt")
def test_descriptions_do_not_hide_equal_names_from_a_tuner_with_prompts_of_its_own(tiny_backbone, tuner):
    descriptions = {"Cardigan": ["a dog."], "cardigan": ["a warm jacket."]}
    module = FewShotClassifier(tiny_backbone, tuner, descriptions=descriptions)
    with pytest.raises(DtrapError, match="'Cardigan' and 'cardigan' cannot be told apart"):
        module.set_classes(list(descriptions))


def test_a_run_names_equal_classes_before_its_first_episode(dtrap, tmp_path, tiny_model):
    root = make_folder(tmp_path / "photos", counts=(3, 3, 3))
    for number, name in enumerate(("Cardigan", "cardigan", "clog")):
        (root / f"cls_{number:02d}").rename(root / name)
    words = ["fit", "--config", "folder.yaml", "--data.root", root, *tiny_model, "--trainer.max_epochs", 1]
    status, out, err = dtrap(*words)
    assert status == 2
    assert "the classes 'Cardigan' and 'cardigan' cannot be told apart" in err
    assert len(err.splitlines()) == 1
    assert "Results" not in out
    status, _, err = dtrap(*words, "--data.class_names", "{cardigan: woolen jacket}")
    assert status == 0, err
