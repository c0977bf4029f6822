#!/usr/bin/env python3
"""Write docs/models.md, the models and their licences, from the table ovseg/hub/models.json.

python tools/write_models.py            # write the page
python tools/write_models.py --check    # exit with status 1 if the page is out of date
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ovseg.cli.generated import write_or_check
from ovseg.errors import user_errors
from ovseg.hub.table import Model, ModelFile, models

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
PLACES = {
    "here": "in this package",
    "package": "in Python packages",
    "hub": "on the Hugging Face hub",
    "page": "to be got by hand",
}
HEAD = """# Models and licences

```bash
ovseg models                     # the table below
ovseg models show photo          # everything about one model, with the sha256 of its files
ovseg models download sam-b-clip-l
ovseg segment photo.jpg --words "cat, sofa" --model sam-b-clip-l
```

```python
from ovseg import Segmenter

Segmenter.from_pretrained("photo")  # a name of the table
Segmenter.from_pretrained("my_model")  # a folder of segmenter.save_pretrained("my_model")
Segmenter.from_pretrained("hf-hub:organisation/name")
```

Nothing is fetched from the hub unless a model that needs it is asked for. Downloads resume, are compared with the
sha256 where it is known, and `HF_HUB_OFFLINE=1` forbids them: then the files must be there. A folder of
`save_pretrained` needs no network.

This page is generated: edit `ovseg/hub/models.json`, then run `python tools/write_models.py`.

## Which licence applies?

The code of ovseg is Apache-2.0. A model has the licences of all files that it reads:

- **permissive**: commercial use is permitted by the licences of all files (Apache-2.0, MIT);
- **others**: the published weights of OVSeg and SCAN are CC BY-NC 4.0, for non-commercial use. That also holds for a
  model that was fine-tuned from them.

A licence of weights says nothing about the images that they were trained on. COCO, ImageNet and BSDS500 have terms of
their own, which may matter for commercial use; this page is no legal advice. OpenAI's model card of CLIP calls any
deployed use of it, commercial or not, out of scope, which is advice and no term of its licence.
"""


def models_table(rows: Sequence[Model]) -> str:
    """Return models as a table."""
    lines = ["| name | model | licence | size | figures | files |", "|---|---|---|---|---|---|"]
    for row in rows:
        figures = "; ".join(f"{name} {value}" for name, value in row.figures.items())
        notes = f"{figures}. {row.protocol}" if figures else row.protocol
        extra = f"; needs `ovseg[{row.extra}]`" if row.extra else ""
        cells = [f"`{row.name}`", f"{row.system}: {row.summary}{extra}", row.licence, _size(row.size), notes]
        lines.append("| " + " | ".join([*cells, PLACES[row.place]]) + " |")
    return "\n".join([*lines, ""])


def files_table(files: Sequence[ModelFile]) -> str:
    """Return the files that are not in this package as a table."""
    lines = ["| file | licence | size | from | sha256 |", "|---|---|---|---|---|"]
    for file in files:
        source = f"hub, `{file.hub}`" if file.hub else f"package `{file.package}`" if file.package else file.page
        known = "<br>".join(f"`{name}` `{digest[:12]}...`" for name, digest in file.sha256.items()) or "unknown"
        lines.append("| " + " | ".join([file.title, file.licence, _size(file.size), source, known]) + " |")
    return "\n".join([*lines, ""])


def _size(size: int | None) -> str:
    if size is None:
        return "unknown"
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def reference() -> str:
    """Return the text of the page."""
    rows = list(models().values())
    toys = [row for row in rows if row.name.startswith("toy-")]
    files = {file.title: file for row in rows for file in row.files if not file.path}
    parts = [
        HEAD,
        "## Under permissive licences\n",
        models_table([row for row in rows if row.permissive and row not in toys]),
        "Where the weights could not be fetched, figures are those of the original, or missing.\n",
        "## For non-commercial use\n",
        models_table([row for row in rows if not row.permissive]),
        "## For the toy world\n",
        models_table(toys),
        "[toy_world.md](toy_world.md) describes it. These models know nothing else.\n",
        "## Files\n",
        "Those that are not in this package; `ovseg models show NAME` prints whole checksums.\n",
        files_table(list(files.values())),
    ]
    return "\n".join(parts).rstrip() + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Write the page, or check it; exits with status 1 if it is out of date."""
    write_or_check(__doc__, "tools/write_models.py", "page", lambda: {PAGE: reference()}, argv)


if __name__ == "__main__":
    with user_errors():
        main()
