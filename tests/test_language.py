"""Words to avoid in code, messages and documents; docs/glossary.md has the terms to use instead."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
WORDS = {
    "mend|mends|mended|mending": "fix, correct, patch",
    "told|tell|tells|telling": "state, report, list, show",
    "shall": "must, or the present tense",
    "beside|besides": "next to, in addition to",
    "opinion|opinions": "class scores",
    "film|films": "video",
    "picture|pictures": "image, drawing",
    "worked out": "computed",
    "give way|gives way": "is replaced by",
    "its like": "the same",
    "as they are there": "name what is meant",
    "who wants": "to ...",
}
# a phrase may continue on the next line
AVOIDED = re.compile("|".join(rf"\b(?:{words})\b" for words in WORDS).replace(" ", r"[ #*\n]+"), re.IGNORECASE)
ALLOWED = (
    re.compile(
        r"\bratio_of(:| ==) \"?picture\b|^ +\"picture\",$|\(\"picture\", \"crop\"\)|\{picture,crop\}.*", re.MULTILINE
    ),  # recipes
    re.compile(r"\bpicture\(\)|def picture\b|`picture`"),  # Segmentation.picture
    re.compile(r"\.tell\(\)"),  # of files
    re.compile(r"\bdetectron2_mends\b"),  # old name in the changelog
    re.compile(
        r"photo photograph image picture pic scene|shelves beside scissors|below beneath beside besides"
    ),  # words of captions
    re.compile(r'"(?:next to", "beside|a picture of \{\})"'),  # captions of the toy world
)
TEXT = {".py", ".md", ".yaml", ".toml", ".cff", ".html", ""}  # suffixes; "": Makefile, .ci/run
SKIPPED = ("tests/test_language.py", "CONTRIBUTING.md", "LICENSE", "tests/data/")


def tracked() -> list[str]:
    listed = subprocess.run(["git", "-C", REPO, "ls-files"], capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a checkout of git")
    paths = [path for path in listed.stdout.splitlines() if Path(path).suffix in TEXT and (REPO / path).is_file()]
    return [path for path in paths if not path.startswith(SKIPPED)]


def found_words(text: str) -> list[tuple[int, str]]:
    """Return (line, word) of the words to avoid."""
    for allowed in ALLOWED:
        text = allowed.sub(lambda match: "_" * len(match[0]), text)
    return [
        (text.count("\n", 0, match.start()) + 1, " ".join(re.findall(r"\w+", match[0])))
        for match in AVOIDED.finditer(text)
    ]


def test_words_are_found():
    assert found_words("a picture of\nmasks, worked\n    # out") == [(1, "picture"), (2, "worked out")]
    assert found_words("a\nfilm; Told") == [(2, "film"), (2, "Told")]
    assert found_words("ratio_of: picture, file.tell(), storyteller, self.picture()") == []


def test_no_text_has_words_to_avoid():
    found = [
        f"{path}:{line}: {word!r}"
        for path in tracked()
        for line, word in found_words((REPO / path).read_text(encoding="utf-8", errors="replace"))
    ]
    assert found == [], f"{len(found)} words to avoid (see WORDS for replacements):\n" + "\n".join(found)


def test_the_glossary_is_alphabetical():
    rows = re.findall(
        r"^\| (.+?) \| (.+) \|$", (REPO / "docs" / "glossary.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    terms = [term.casefold() for term, _ in rows[1:]]
    assert len(terms) > 50 and terms == sorted(set(terms))
