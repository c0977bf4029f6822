"""Label Studio's tasks with predictions, to be corrected there: https://labelstud.io/guide/predictions.

Polygons are in percent of width and height. They have no holes: slits lead to them
(:meth:`ovseg.result.polygons.Outline.joined`). Each region and each image has a score.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np

from ovseg.io.files import atomic_path, write_text
from ovseg.result.drawing import word_color
from ovseg.result.formats.cvat import xml_text
from ovseg.result.formats.labelled_set import JsonList, LabelledSet, rounded
from ovseg.result.regions import LabelledImage, Region, score_of

LOCAL_FILES = "/data/local-files/?d="  # of Label Studio, with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED


def label_studio_task(image: LabelledImage, tolerance: float, url: str, model: str = "ovseg") -> dict[str, Any]:
    """Return the task of an image with one prediction.

    Args:
        url: where Label Studio finds the image.
        model: ``model_version`` of the prediction.
    """
    results = [_result(image, region, tolerance, f"r{number}") for number, region in enumerate(image.regions)]
    score = rounded(score_of(image.regions)) if image.regions else 0.0
    return {"data": {"image": url}, "predictions": [{"model_version": model, "score": score, "result": results}]}


def label_studio_config(names: tuple[str, ...]) -> str:
    """Return the labelling configuration of a project for these words."""
    labels = "".join(
        f'    <Label value={quoteattr(xml_text(name))} background="{word_color(k).as_hex()}"/>\n'
        for k, name in enumerate(names)
    )
    image = '  <Image name="image" value="$image"/>\n'
    return f'<View>\n{image}  <PolygonLabels name="label" toName="image">\n{labels}  </PolygonLabels>\n</View>\n'


def write_label_studio(labelled: LabelledSet) -> None:
    """Write ``tasks.json`` and the project's labelling configuration, ``config.xml``.

    Images are local files below the folder of images, which must be Label Studio's
    ``LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT``.
    """
    path = labelled.folder / "tasks.json"
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", errors="backslashreplace") as file:
        file.write("[")
        tasks = JsonList(file)
        for image in labelled.images:
            url = LOCAL_FILES + quote(image.name, errors="replace")
            tasks.append(label_studio_task(image, labelled.tolerance, url, labelled.model))
        file.write("\n]\n")
    write_text(labelled.folder / "config.xml", label_studio_config(labelled.names))


def _result(image: LabelledImage, region: Region, tolerance: float, name: str) -> dict[str, Any]:
    height, width = image.size
    points = image.outline(region, tolerance).joined() * (100 / np.array([width, height]))
    value = {"points": points.round(4).tolist(), "polygonlabels": [xml_text(image.names[region.label])], "closed": True}
    place = {"type": "polygonlabels", "from_name": "label", "to_name": "image"}
    size = {"original_width": width, "original_height": height, "image_rotation": 0}
    return {"id": name, **place, **size, "value": value, "score": rounded(region.score)}
