"""The control for descriptions: as many random words."""

import re

import pytest
from dtrap.datamodules.shape_images import SHAPES
from dtrap.errors import DtrapError
from dtrap.lightning_modules import FewShotClassifier
from dtrap.lightning_modules.backbones import OpenCLIP
from dtrap.lightning_modules.random_words import COMMON, random_descriptions
from dtrap.lightning_modules.text_head import class_prompts, read_descriptions

RIVER = {
    "annual_crop": ["a photo of {}, fields in rows.", "An Annual Crop: wheat or maize!"],
    "river": ["a river's wide-open band.", "water (blue) with banks"],
    "lake": ["{}"],
}


def test_every_word_but_the_class_name_is_replaced_and_punctuation_stays():
    found = random_descriptions(RIVER, 1)
    assert list(found) == list(RIVER)
    word = "([a-z]+)"
    patterns = [
        rf"{word} {word} {word} \{{\}}, {word} {word} {word}\.",
        rf"{word} Annual Crop: {word} {word} {word}!",
        rf"{word} river's {word} {word}\.",
        rf"{word} \({word}\) {word} {word}",
    ]
    sentences = [sentence for name in ("annual_crop", "river") for sentence in found[name]]
    for pattern, sentence in zip(patterns, sentences, strict=True):
        match = re.fullmatch(pattern, sentence)
        assert match, sentence
        assert set(match.groups()) <= set(COMMON)
    assert found["lake"] == ["{}"]


def test_words_depend_on_class_sentence_and_number_only():
    found = random_descriptions(RIVER, 1)
    assert random_descriptions({"river": RIVER["river"]}, 1)["river"] == found["river"]
    assert random_descriptions(dict(reversed(RIVER.items())), 1) == found
    others = random_descriptions(RIVER, 2)
    assert all(others[name] != found[name] for name in ("annual_crop", "river"))
    same = random_descriptions({"a": ["x y z", "x y z"], "b": ["x y z"]}, 1)
    assert len({*same["a"], *same["b"]}) == 3
    assert random_descriptions(found, 1) == found  # replaced sentences stay


def test_the_words_of_the_class_name_are_never_drawn():
    many = {name: [" ".join(["word"] * 3000)] for name in ("bird", "horse_Door")}
    found = random_descriptions(many, 1)
    assert "bird" not in found["bird"][0].split()
    assert not {"horse", "door"} & set(found["horse_Door"][0].split())
    assert "bird" in found["horse_Door"][0].split()


def test_classes_of_one_word_stay_apart(tiny_backbone):
    found = random_descriptions({f"class {number}": ["thing"] for number in range(120)}, 1)
    assert len({sentence for sentences in found.values() for sentence in sentences}) == 120
    class_prompts(list(found), "{}", tiny_backbone, found)


def test_the_module_uses_them_in_place_of_the_descriptions(tiny_backbone):
    module = FewShotClassifier(tiny_backbone, descriptions=RIVER, random_words=3)
    module.set_classes(["river", "lake"])
    assert module.class_prompts.by_class == {"river": random_descriptions(RIVER, 3)["river"], "lake": ["lake"]}
    assert module.random_words == 3


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"random_words": 1}, "random_words is 1, but there are no descriptions .*--model.descriptions FILE"),
        ({"random_words": 0, "descriptions": RIVER}, "random_words is 0; expected at least 1"),
        ({"random_words": 1, "descriptions": {"river": ["{}.", "River!"]}}, "no sentence .* has a word besides"),
    ],
)
def test_a_control_of_nothing_is_refused(tiny_backbone, options, error):
    with pytest.raises(DtrapError, match=error):
        FewShotClassifier(tiny_backbone, **options)


def test_the_demos_descriptions_and_their_controls_fit_its_clip():
    backbone = OpenCLIP("tiny_clip.json", "tiny_clip.safetensors")
    descriptions = read_descriptions("shape_descriptions.yaml")
    assert list(descriptions) == SHAPES
    for number in (None, 1, 2, 3):
        texts = descriptions if number is None else random_descriptions(descriptions, number)
        prompts = class_prompts(SHAPES, "{}", backbone, texts)
        assert len(prompts.prompts) == 30
