"""A control for class descriptions: as many random words in their place."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence

from ..errors import DtrapError

# Common English words, without those for shapes, patterns, colors, sizes and parts of an image.
COMMON = """
able about account across act add again against age agree air allow almost alone already also although always amount
animal another answer anything appear apply argue arm arrive ask attempt autumn away baby bank basic beat become begin
believe better bird bit board boat body book born both bottle box boy bread break bring brother build burn bus business
busy buy cake call camp car card care carry case catch cause certain chair chance change cheap child choice church city
class clean climb clock close cloth coat coffee cold college come common company consider cook copy corn cost cotton
count country course cousin cover crowd cry cup daughter day dead deal decide degree depend desk dinner doctor dog door
doubt dream dress drink drive dry during duty ear early earn earth east easy eat education effort egg either election
else empty end engine enjoy enough enter even evening event ever every example except expect explain eye face fact fail
family famous farm father fear feel festival few fight finger finish fire fish floor fly follow food foot force foreign
forget forward free friend fruit funny game garden gate general get gift girl give glass go gold government grass guest
guide hair hand happen happy hard hat head health hear heavy help hill history hold holiday home honest hope horse
hospital hotel hour house however hundred hunger hurry husband idea ill important increase inside island job join
journey judge jump keep key kind king kitchen know lady lake land language last late laugh law lead learn leave left leg
lesson let letter level library lie life lift listen live local lock look lose love luck lunch machine mail make man
manage many market marry matter maybe meal mean measure meat meet member memory milk million mind minute miss moment
money month moon morning most mother mountain mouth move much music must name nation near neck need never new news next
night nobody noise north nose nothing notice number obtain ocean offer office often oil old once onion only open opinion
order other ought outside own page pain paper parent park part party pass past patient pay peace people perhaps person
phone piano pick picture pilot place plan plant play please pocket poet police poor possible post potato power practice
prepare present president press price prison private prize probable problem produce promise proper protect proud public
pull pupil push put quality question quick quiet quite race radio rain raise rather reach read ready real reason receive
record remember repeat reply report rest result return rice rich ride right rise river road room rule run sad safe salt
same sand save say school science sea seat second secret see seem sell send sentence serve seven several shall shirt
shoe shop should shout show sick side sing sister sit skill sleep smell smile snow soap soft soldier some song soon
sorry sort sound soup south speak special spend spoon sport spring stand start state station stay steal step stick still
stone stop store storm story strange street student study such sudden sugar suit summer sun supper sure surprise swim
table take talk taste tax tea teach team tell than thank theater therefore thief thing think thirst thousand throw
ticket time tired today together tomorrow too tooth total touch toward town trade train travel tree trip trouble trust
try turn twenty twice uncle under unite until use usual valley very village visit voice vote wait walk wall want war
warm wash watch water weak wear weather wedding week weight welcome west while whole why wife wild win wind window wine
winter wise wish woman wonder wood word work world worry write wrong year yesterday yet young youth
""".split()  # noqa: SIM905 - a list of 600 texts in quotes cannot be read
_WORD = r"[^\W_](?:[\w'’-]*\w)?"


def random_descriptions(descriptions: Mapping[str, Sequence[str]], draw: int) -> dict[str, list[str]]:
    """Replace every word of every sentence by a random common word; the class name and punctuation stay.

    The words depend on the class, the number of the sentence and `draw` only, unless two classes would get the same
    sentences. The class name stays where `{}` stands for it and where it is written out, so that it is in a sentence
    and its control, or in neither. The number of words is the same; that of tokens may differ. Sentences that are
    replaced already stay the same.

    Args:
        descriptions: Sentences by class name.
        draw: The number of the control, of which there may be several.

    Raises:
        DtrapError: No sentence has a word besides the class name.
    """
    found: dict[str, list[str]] = {}
    replaced = 0
    for name, sentences in descriptions.items():
        known = [sorted(others) for others in found.values()]
        for attempt in range(100):  # classes with the same sentences could not be told apart
            controls = [_Control(name, f"{draw}/{attempt}/{name}/{number}") for number in range(len(sentences))]
            found[name] = [control(sentence) for control, sentence in zip(controls, sentences, strict=True)]
            if sorted(found[name]) not in known:
                break
        replaced += sum(control.words for control in controls)
    if not replaced:
        raise DtrapError(
            "random_words: no sentence of the descriptions has a word besides the class name that could be replaced. "
            "Describe the classes in --model.descriptions FILE, or leave --model.random_words out."
        )
    return found


class _Control:
    """Replaces the words of one sentence.

    Args:
        name: The class name, which stays, and whose words are not drawn.
        seed: Seed of the words, the same on every machine.

    Attributes:
        words: Number of replaced words.
    """

    def __init__(self, name: str, seed: str) -> None:
        spoken = name.replace("_", " ")
        self.words = 0
        self._generator = random.Random(seed)
        self._choice = [word for word in COMMON if word not in spoken.lower().split()]
        own = rf"\{{\}}|(?<!\w){re.escape(spoken)}(?:['’]s)?(?!\w)"
        self._pattern = re.compile(rf"(?P<own>{own})|{_WORD}", re.IGNORECASE)

    def __call__(self, sentence: str) -> str:
        return self._pattern.sub(self._word, sentence)

    def _word(self, match: re.Match[str]) -> str:
        if match["own"] is not None:
            return match[0]
        self.words += 1
        return self._generator.choice(self._choice)
