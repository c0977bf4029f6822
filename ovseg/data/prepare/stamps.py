"""A hidden note in an output folder: how its files were made, and which were left out on purpose."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from ovseg.files import atomic_path

NAME = ".ovseg_prepare.json"


@dataclass
class Stamp:
    """The note of one folder.

    Attributes:
        recipe: changes when the same sources would give other files.
        left_out: name -> [bytes, mtime in ns] of the sources that gave no file, every pixel being ignored.
    """

    recipe: str
    left_out: dict[str, list[int]] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Stamp | None:
        """The note in ``folder``; None if there is none, or it is damaged."""
        try:
            content = json.loads((folder / NAME).read_text(encoding="utf-8"))
            return cls(str(content["recipe"]), {str(name): list(sign) for name, sign in content["left_out"].items()})
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def save(self, folder: Path) -> None:
        """Write the note.

        Raises:
            OvsegError: as :func:`ovseg.files.atomic_path`.
        """
        with atomic_path(folder / NAME) as temporary:
            temporary.write_text(json.dumps({"recipe": self.recipe, "left_out": self.left_out}), encoding="utf-8")
