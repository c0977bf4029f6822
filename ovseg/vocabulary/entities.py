"""Entities of captions: the words that OVSegmentor's questions hide and its pairs of images share (arXiv 2301.09121).

The words are those of CC12M that its authors count as entities (its specification, section 7 and appendix A).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator

MASK = "[MASK]"  # BERT's word for a hidden one

_PEOPLE = "people man men woman women girl boy lady kid child children baby student bride groom couple prince princess"
# The words of the filter, spelled just so.
FILTER_WORDS = tuple(
    f"""
    {_PEOPLE} car bus truck motorcycle train bicycle boat aeroplane airplane motorbike bike cup bottle bowl knife spoon
    glass fork chair table bench clock laptop light vase plant remote microwave toaster oven mouse keyboard sofa monitor
    desk tv TV couch flower refrigerator house building hotel handbag umbrella book backpack phone shirt tie suitcase
    T-shirt bag box sink bed toilet cat dog horse bird cow sheep elephant bear zebra giraffe ball racket skateboard skis
    snowboard surfboard kite pizza cake apple banana sandwich orange carrot donut
    """.split()
)
# Lemmas that stand for another entity. In the original, two spellings of "T-shirt" that no lower-case word can equal.
SYNONYMS = dict.fromkeys(_PEOPLE.split(), "people") | {
    "airplane": "aeroplane",
    "motorbike": "motorcycle",
    "bike": "bicycle",
    "TV": "tv",
    "desk": "table",
    "couch": "sofa",
    "building": "house",
    "hotel": "house",
    "T-shirt": "shirt",
    "T-Shirt": "shirt",
    "handbag": "bag",
}
# 73 entities, in the original's order.
ENTITIES = tuple(dict.fromkeys(SYNONYMS.get(word, word) for word in FILTER_WORDS))

_ENTITY_OF = {word: word for word in ENTITIES} | SYNONYMS
# WordNet's rules for nouns, and what of its list of exceptions ends in an entity.
_RULES = (
    ("s", ""),
    ("ses", "s"),
    ("ves", "f"),
    ("xes", "x"),
    ("zes", "z"),
    ("ches", "ch"),
    ("shes", "sh"),
    ("men", "man"),
    ("ies", "y"),
)
_EXCEPTIONS = {
    "buses": "bus",
    "busses": "bus",
    "children": "child",
    "kine": "cow",
    "knives": "knife",
    "men": "man",
    "mice": "mouse",
    "women": "woman",
}
# Lemmas: those two plurals are exceptions only ("childrens" has none); that of "skis" is "ski", so it is never found.
_NOUNS = frozenset(_ENTITY_OF) - {"children", "women", "skis"} | {"ski"}
_SENTENCE = re.compile(r"(?<=[.?!])\s+|(?<=[.?!][\"')\]”’])\s+")
_ANY_WORD = re.compile("|".join(sorted(map(re.escape, FILTER_WORDS), key=len, reverse=True)))
_POSSESSIVE = re.compile(r"(['’]s|(?<=s)['’])$")
_WORD = re.compile(r"[^\W_]+(?:[-'’][^\W_]+)*")


def filter_entities(caption: str) -> list[str]:
    """Return the words of :data:`FILTER_WORDS` that are tokens of a caption, each once, in the order of the caption.

    Tokens are those of NLTK's word tokenizer, and compared as they are spelled: neither "dogs" nor "Dog" is one of the
    words, and neither is the "bus" of "bus-stop"; "woman's" has the token "woman".
    """
    if not _ANY_WORD.search(caption):  # most captions of the web: tokenizing takes a hundred times as long
        return []
    tokenize = _tokenizer()
    tokens = (token for sentence in _SENTENCE.split(caption) for token in tokenize(sentence))
    return [token for token in dict.fromkeys(tokens) if token in _FILTER]


_FILTER = frozenset(FILTER_WORDS)


def mask_entities(caption: str, legacy: bool = True) -> tuple[str, list[str]]:
    """Return the question of a caption, with :data:`MASK` in place of its entities, and these entities.

    Words are separated by single blanks, and compared in lower case, as lemmas, and without full stops; other
    punctuation at a word prevents its recognition. A masked word loses its punctuation; apostrophes are deleted.

    Args:
        caption: the caption.
        legacy: remove each "s" and apostrophe from both ends of every word, as the original does; its trained models
            have read such questions ("itting on the ofa"), and never one that hides "sofa" or "bus". False removes the
            ending of a possessive only: 's, or the apostrophe after an s.

    Returns:
        the question, and the entities, members of :data:`ENTITIES`, each once, in the order of the caption.
    """
    words, found = [], []
    for word in caption.split(" "):
        word = word.strip("'s") if legacy else _POSSESSIVE.sub("", word.strip())
        word = word.strip()
        entity = _ENTITY_OF.get(lemma_of(word.replace(".", "").lower()))
        words.append(word if entity is None else MASK)
        found += [] if entity is None else [entity]
    return " ".join(words).replace("'", "").strip(), list(dict.fromkeys(found))


def lemma_of(word: str) -> str:
    """Return the singular of a lower-case noun by WordNet's rules, where one is needed for :data:`ENTITIES`.

    A form is a noun if it is one of the entities or their synonyms; other words are returned as they are.
    """
    if word in _EXCEPTIONS:
        return _EXCEPTIONS[word]
    forms = [word]
    while forms:
        shorter = [form[: -len(end)] + new for form in forms for end, new in _RULES if form.endswith(end)]
        if nouns := [form for form in (*forms, *shorter) if form in _NOUNS]:
            return min(nouns, key=len)
        forms = shorter
    return word


def answer_text(entities: Iterable[str], template: str) -> str:
    """Return the answer to a question: a template up to its placeholder, then the entities, joined by "and".

    What follows the placeholder is left out, as in the original: "a photo of the dog and car".
    """
    return template.partition("{}")[0] + " and ".join(entities)


class EntityFinder:
    """Finder of the entities of captions: what a question hides, and what two images share.

    Args:
        legacy: see :func:`mask_entities`.
    """

    def __init__(self, legacy: bool = True):
        self.legacy = legacy

    def mask(self, caption: str) -> tuple[str, list[str]]:
        """Return the question and the entities of a caption."""
        return mask_entities(caption, self.legacy)

    def shared(self, caption: str) -> list[str]:
        """Return the words of a caption that another image may share."""
        return filter_entities(caption)


class PhraseFinder:
    """Finder of given words and phrases in captions, longest first, whatever their letter case, in the plural, too.

    Args:
        phrases: such as "traffic light".
    """

    def __init__(self, phrases: Iterable[str]):
        self._known = {tuple(phrase.lower().split()): phrase for phrase in phrases}
        self._longest = max(map(len, self._known), default=0)

    def mask(self, caption: str) -> tuple[str, list[str]]:
        """Return the caption with :data:`MASK` in place of each phrase, and the phrases, each once, in order."""
        parts, end, found = [], 0, []
        for start, stop, phrase in self._matches(caption):
            parts += [caption[end:start], MASK]
            end = stop
            found.append(phrase)
        return "".join([*parts, caption[end:]]).strip(), list(dict.fromkeys(found))

    def shared(self, caption: str) -> list[str]:
        """Return the phrases of a caption, each once, in order."""
        return list(dict.fromkeys(phrase for _, _, phrase in self._matches(caption)))

    def _matches(self, caption: str) -> Iterator[tuple[int, int, str]]:
        words = list(_WORD.finditer(caption))
        texts = [_POSSESSIVE.sub("", word.group().lower()) for word in words]
        first = 0
        while first < len(words):
            for length in range(min(self._longest, len(words) - first), 0, -1):
                if (phrase := self._find(tuple(texts[first : first + length]))) is not None:
                    yield words[first].start(), words[first + length - 1].end(), phrase
                    first += length - 1
                    break
            first += 1

    def _find(self, words: tuple[str, ...]) -> str | None:
        *others, last = words
        singular = (last[: -len(end)] + new for end, new in _RULES if last.endswith(end))
        return next((self._known[key] for form in (last, *singular) if (key := (*others, form)) in self._known), None)


@functools.cache
def _tokenizer() -> Callable[[str], list[str]]:
    from nltk.tokenize import NLTKWordTokenizer  # takes a second to import

    return NLTKWordTokenizer().tokenize
