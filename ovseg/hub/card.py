"""``ModelCard``: licence, data, protocol and figures of a model, as the README.md of its folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from ovseg.errors import OvsegError, shown
from ovseg.hub.table import Model
from ovseg.io.plain_yaml import load_plain

UNKNOWN = "unknown"
LIBRARY = "ovseg"
# identifiers of the hub for the licences of the table; the hub calls any other "other"
_OF_HUB = {
    **{name.lower(): name.lower() for name in ("Apache-2.0", "MIT", "BSD-3-Clause", "CC-BY-4.0", "CC-BY-SA-4.0")},
    **{name.lower(): name.lower() for name in ("CC-BY-NC-4.0", "CC-BY-NC-SA-4.0", "CC0-1.0", UNKNOWN)},
}


@dataclass(frozen=True)
class ModelCard:
    """What people need to know of a model before they use it; what is not known stays :data:`UNKNOWN`.

    Attributes:
        name: of the model.
        system: architecture, such as "OVSeg, Swin-B + ViT-L/14".
        licence: SPDX identifier, or several with commas.
        data: what it was trained on.
        protocol: data set, words, measure and unit of the figures.
        figures: value by name.
        source: paper, page or document.
    """

    name: str = UNKNOWN
    system: str = UNKNOWN
    licence: str = UNKNOWN
    data: str = UNKNOWN
    protocol: str = UNKNOWN
    figures: Mapping[str, Any] = field(default_factory=dict)
    source: str = UNKNOWN

    @classmethod
    def of(cls, card: ModelCard | Mapping[str, Any] | None) -> ModelCard:
        """Return a card as it is, or that of its attributes.

        Raises:
            OvsegError: an attribute does not exist, or has a value of another type.
        """
        if card is None or isinstance(card, ModelCard):
            return card or cls()
        known = [attribute.name for attribute in fields(cls)]
        if not isinstance(card, Mapping) or (wrong := [key for key in card if key not in known]):
            what = shown(wrong[0]) if isinstance(card, Mapping) else shown(card)
            raise OvsegError(f"card has {what}: give a mapping with {', '.join(known)}")
        for key, value in card.items():
            if not isinstance(value, Mapping if key == "figures" else str):
                kind = "a mapping of names and values" if key == "figures" else "a text"
                raise OvsegError(f"{key} of the card is {shown(value)}: give {kind}")
        return cls(**card)

    @classmethod
    def of_model(cls, model: Model) -> ModelCard:
        """Return the card of a row of the table of models."""
        known = {name: getattr(model, name) or UNKNOWN for name in ("system", "licence", "data", "protocol", "source")}
        return cls(name=model.name, figures=dict(model.figures), **known)

    @classmethod
    def read(cls, path: Path) -> ModelCard | None:
        """Return the card of a README.md; None if it has none."""
        about = _front_matter(path).get(LIBRARY)
        try:
            return cls.of(about) if isinstance(about, Mapping) else None
        except OvsegError:
            return None

    def text(self, files: Mapping[str, tuple[int, str]]) -> str:
        """Return the README.md.

        Args:
            files: size in bytes and sha256 of the other files of the folder, by name.
        """
        licence = _OF_HUB.get(self.licence.lower(), "other")
        front = {"license": licence} | ({"license_name": self.licence} if licence == "other" else {})
        front |= {"library_name": LIBRARY, "pipeline_tag": "image-segmentation"}
        front |= {"tags": ["open-vocabulary", "semantic-segmentation"], LIBRARY: asdict(self)}
        lines = ["---", yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=120).rstrip(), "---", ""]
        lines += [f"# {self.name}", "", f"A segmenter of the package ovseg: {self.system}.", ""]
        lines += ["```python", "from ovseg import Segmenter", "", 'segmenter = Segmenter.from_pretrained("FOLDER")']
        lines += ['segmenter("photo.jpg", ["cat", "sofa"]).save("out.png")', "```", ""]
        lines += ["| | |", "|---|---|"]
        rows = {"licence": self.licence, "data": self.data, "source": self.source}
        lines += [f"| {key} | {_cell(value)} |" for key, value in rows.items()]
        lines += ["", "## Figures", "", f"Protocol: {self.protocol}", ""]
        if self.figures:
            lines += ["| | |", "|---|---|", *(f"| {_cell(key)} | {_cell(v)} |" for key, v in self.figures.items())]
        else:
            lines += ["None are known."]
        lines += ["", "## Files", "", "| file | bytes | sha256 |", "|---|---|---|"]
        lines += [f"| {_cell(name)} | {size} | `{digest}` |" for name, (size, digest) in files.items()]
        if self.licence == UNKNOWN:
            lines += ["", "The licence is not known: write down that of the weights before you pass them on."]
        return "\n".join([*lines, ""])


def is_card_of_ours(path: Path) -> bool:
    """Return whether a README.md is a card of this package."""
    return _front_matter(path).get("library_name") == LIBRARY


def _front_matter(path: Path) -> Mapping[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        content = load_plain(text.split("---\n", 2)[1]) if text.startswith("---\n") else None
    except (OSError, ValueError, IndexError, yaml.YAMLError):
        return {}
    return content if isinstance(content, Mapping) else {}


def _cell(value: Any) -> str:
    return " ".join(str(value).replace("|", "\\|").split())
