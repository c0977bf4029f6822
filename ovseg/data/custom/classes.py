"""Classes of the raw values of a data set's labels: numbers, colours, labels, categories."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from PIL import ImageColor

from ovseg.data.custom.description import Description
from ovseg.data.custom.names import text_key
from ovseg.data.custom.values import IGNORED, UNLISTED
from ovseg.vocabulary import Vocabulary


@dataclass(frozen=True)
class Classes:
    """The classes of a data set, and how its description refers to them.

    Args:
        own: the description.
        vocabulary: its K classes.

    Raises:
        OvsegError: a reference to a class that is not in the list, or an ignore label that is a class.
    """

    own: Description
    vocabulary: Vocabulary

    def __post_init__(self) -> None:
        if len(self) > 2**16 - 1:
            raise self.own.error("classes", f"there are {len(self)} classes, and label files hold 65535 at most")
        if self.ignore_label < len(self):
            name = self.vocabulary.names[self.ignore_label]
            raise self.own.error(
                "ignore_label",
                f"{self.ignore_label} is also the index of the class {name!r}: choose a number from {len(self)} up; "
                "if the masks count classes from 1, use first_id: 1",
            )
        for position, name in enumerate(self.vocabulary.names, start=1):
            if text_key(name).strip("_") == "ignore":  # labelme writes __ignore__
                raise self.own.error(
                    "classes",
                    f"class {position} is called {name!r}, which stands for ignored pixels: rename it, or leave it out "
                    f"of the list and write ids: {{{'VALUE' if self.own.kind == 'masks' else name}: ignore}}",
                )
        # looked at now, so that a mistake in any key is found before the first file is read
        _ = self.evaluation_set, self.table, self.colors, self.background

    def __len__(self) -> int:
        return len(self.vocabulary)

    @property
    def ignore_label(self) -> int:
        """The value of ignored pixels in label files: as given, else 255, or 65535 for more than 255 classes."""
        chosen = self.own.ignore_label
        return chosen if chosen is not None else (255 if len(self) <= 255 else 65535)

    @property
    def unlisted(self) -> int:
        """Value of raw values without a class: UNLISTED, which is an error, or IGNORED."""
        return IGNORED if self.own.unlisted == "ignore" else UNLISTED

    @cached_property
    def evaluation_set(self) -> dict[str, list[int]]:
        """Class indices of ``base`` (seen) and ``novel`` (unseen) classes; empty without a split."""
        keys = ("seen", "unseen")
        sides = {key: {self.index(entry, key, may_ignore=False) for entry in getattr(self.own, key)} for key in keys}
        if both := sides["seen"] & sides["unseen"]:
            raise self.own.error("unseen", f"{self.vocabulary.names[min(both)]!r} is also seen: keep it on one side")
        if not any(sides.values()):
            return {}
        for side, other in (("seen", "unseen"), ("unseen", "seen")):
            if not sides[side]:
                sides[side] = set(range(len(self))) - sides[other]
                if not sides[side]:
                    raise self.own.error(other, "names every class, so there is no split: leave some out, or remove it")
        if left := set(range(len(self))) - sides["seen"] - sides["unseen"]:
            name = self.vocabulary.names[min(left)]
            raise self.own.error("seen", f"the class {name!r} is neither seen nor unseen: name one side only, or both")
        return {"base": sorted(sides["seen"]), "novel": sorted(sides["unseen"])}

    @cached_property
    def background(self) -> int:
        """Class index of pixels that no object covers, or IGNORED."""
        return IGNORED if self.own.background is None else self.index(self.own.background, "background")

    @cached_property
    def table(self) -> dict[Hashable, int]:
        """Class index or IGNORED of the raw values: numbers for masks; names and numbers for labels and categories."""
        own = self.own
        if own.kind == "masks":
            ignored = {self.ignore_label: IGNORED}
            if own.ids is None:
                first = own.first_id or 0
                return dict.fromkeys(range(first), IGNORED) | {first + k: k for k in range(len(self))} | ignored
            for raw in own.ids:
                if isinstance(raw, bool) or not isinstance(raw, int) or not -(2**31) <= raw < 2**32:
                    raise own.error("ids", f"{raw!r} is no value of a pixel: write whole numbers before the colons")
            return ignored | self._given
        table: dict[Hashable, int] = dict(self._by_text)
        for raw, index in self._given.items():
            if isinstance(raw, bool) or not isinstance(raw, (str, int)):
                raise own.error("ids", f"{raw!r} is no label: put it into quotes, as it stands in the label files")
            table[text_key(raw) if isinstance(raw, str) else raw] = index
        if own.kind == "labelme":  # whose labels are texts, numbers included; a quoted one goes first
            table = {str(raw): index for raw, index in table.items() if isinstance(raw, int)} | table
        return table

    @cached_property
    def _given(self) -> dict[Any, int]:
        return {raw: self.index(entry, "ids") for raw, entry in (self.own.ids or {}).items()}

    @cached_property
    def colors(self) -> dict[int, int] | None:
        """Class index or IGNORED by colour, as R * 65536 + G * 256 + B; None without ``colors``."""
        if self.own.colors is None:
            return None
        table: dict[int, int] = {}
        for entry, value in self.own.colors.items():
            index = self.index(entry, "colors")
            several = isinstance(value, list) and value and not all(isinstance(part, int) for part in value)
            for color in value if several else [value]:
                packed = self._color(entry, color)
                if table.setdefault(packed, index) != index:
                    other = "ignore" if table[packed] < 0 else self.vocabulary.names[table[packed]]
                    raise self.own.error("colors", f"{entry!r} and {other!r} have the same colour #{packed:06x}")
        return table

    def _color(self, entry: object, color: object) -> int:
        parts: Any = color
        if isinstance(color, str):
            try:
                parts = ImageColor.getrgb(color)[:3]
            except ValueError:
                parts = None
        plain = isinstance(parts, (list, tuple)) and len(parts) == 3
        if not plain or any(isinstance(p, bool) or not isinstance(p, int) or not 0 <= p < 256 for p in parts):
            raise self.own.error(
                "colors", f'{entry!r} has the colour {color!r}: write [red, green, blue] from 0 to 255, or "#rrggbb"'
            )
        red, green, blue = parts
        return red << 16 | green << 8 | blue

    @cached_property
    def _by_text(self) -> dict[str, int]:
        """Class index by name, and by synonym where only one class has it."""
        vocabulary = self.vocabulary
        times = Counter(text_key(text) for texts in vocabulary.synonyms for text in set(texts))
        synonyms = {
            text_key(text): index
            for index, texts in enumerate(vocabulary.synonyms)
            for text in texts
            if times[text_key(text)] == 1
        }
        return synonyms | {text_key(name): index for index, name in enumerate(vocabulary.names)}

    def index(self, entry: Any, key: str, may_ignore: bool = True) -> int:
        """Return the class of a value of the file: a name, a synonym, an index, or ``ignore``.

        Raises:
            OvsegError: none of them; says where, and the nearest name.
        """
        if isinstance(entry, int) and not isinstance(entry, bool):
            if 0 <= entry < len(self):
                return entry
            raise self.own.error(key, f"there is no class {entry}: the classes are 0 to {len(self) - 1}")
        if not isinstance(entry, str):
            raise self.own.error(key, f"{entry!r} is no class: write a name (in quotes, if need be) or an index")
        text = text_key(entry)
        if may_ignore and text == "ignore":
            return IGNORED
        if text in self._by_text:
            return self._by_text[text]
        raise self.own.error(key, f"there is no class {entry!r}{self.nearest(entry)}")

    def nearest(self, name: str) -> str:
        """Return ``: did you mean ...?`` with the nearest class name, else the first names of the list."""
        names = {known.casefold(): known for known in self.vocabulary.names}
        if near := difflib.get_close_matches(name.casefold(), names, n=1, cutoff=0.6):
            return f": did you mean {names[near[0]]!r}?"
        shown = ", ".join(self.vocabulary.names[:5]) + (", ..." if len(self) > 5 else "")
        return f": the classes are {shown}"
