"""Extension of griffe (mkdocs.yml): Sphinx roles of docstrings, such as :class:`Vocabulary`, are links in the site."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

ROLE = re.compile(r":(?:class|func|meth|attr|mod|data|exc):`([^`]+)`")


class Roles(Extension):
    """Replace roles by links to the reference, where it has the target, and by code elsewhere."""

    def on_instance(self, *, obj: Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = ROLE.sub(lambda match: self._link(match[1], obj), obj.docstring.value)

    @staticmethod
    def _link(target: str, obj: Object) -> str:
        """Return the HTML of a link; a target is an absolute name, or one of the object's module or class."""
        owner = obj if obj.is_class else obj.parent
        places = [place.path for place in (owner, obj.module) if place is not None]
        name = target if target.startswith("ovseg.") else f"{places[0 if obj.is_function else -1]}.{target}"
        return f'<autoref identifier="{name}" optional>`{target.removeprefix("ovseg.")}`</autoref>'
