"""CVAT for images 1.1: https://docs.cvat.ai/docs/dataset_management/formats/format-cvat/.

Parts with holes are masks, others polygons. Each shape has an attribute ``score``; CVAT keeps it if the task's labels
have this attribute, as those of ``labels.json`` do, which is for the "Raw" tab of a new task.
"""

from __future__ import annotations

from xml.etree import ElementTree as ET

import numpy as np

from ovseg.io.files import atomic_path, write_text
from ovseg.result.formats.labelled_set import LabelledSet, compact_json
from ovseg.result.regions import LabelledImage, Region

_ENCODING = "xmlcharrefreplace"


def cvat_image(image: LabelledImage, tolerance: float, number: int = 0) -> str:
    """Return the XML element of an image."""
    height, width = image.size
    element = ET.Element("image", id=str(number), name=xml_text(image.name), width=str(width), height=str(height))
    for order, region in enumerate(image.regions):
        shape = _shape(image, region, tolerance)
        shape.set("z_order", str(order))
        ET.SubElement(shape, "attribute", name="score").text = f"{region.score:.6f}"
        element.append(shape)
    ET.indent(element)
    return ET.tostring(element, encoding="unicode")


def cvat_xml(image: LabelledImage, tolerance: float) -> str:
    """Return the XML file of one image."""
    return f"{_head(image.names, 1)}{cvat_image(image, tolerance)}\n</annotations>\n"


def write_cvat(labelled: LabelledSet) -> None:
    """Write ``annotations.xml``, and ``labels.json`` with the labels of a task."""
    images = list(labelled.images) if not hasattr(labelled.images, "__len__") else labelled.images
    path = labelled.folder / "annotations.xml"
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", errors=_ENCODING) as file:
        file.write(_head(labelled.names, len(images)))
        for number, image in enumerate(images):
            file.write(cvat_image(image, labelled.tolerance, number) + "\n")
        file.write("</annotations>\n")
    score = {"name": "score", "mutable": False, "input_type": "text", "values": [""], "default_value": ""}
    labels = [{"name": name, "attributes": [score]} for name in labelled.names]
    write_text(labelled.folder / "labels.json", compact_json(labels) + "\n")


def xml_text(text: str) -> str:
    """Return a text without characters that XML cannot hold."""
    return "".join(letter if letter >= " " and letter not in "\ufffe\uffff" else "?" for letter in text)


def _head(names: tuple[str, ...], count: int) -> str:
    task = ET.Element("task")
    for key, value in {"name": "ovseg", "size": str(count), "mode": "annotation"}.items():
        ET.SubElement(task, key).text = value
    labels = ET.SubElement(task, "labels")
    for name in names:
        label = ET.SubElement(labels, "label")
        ET.SubElement(label, "name").text = xml_text(name)
        attribute = ET.SubElement(ET.SubElement(label, "attributes"), "attribute")
        for key, value in {"name": "score", "mutable": "False", "input_type": "text"}.items():
            ET.SubElement(attribute, key).text = value
        ET.SubElement(attribute, "default_value")
        ET.SubElement(attribute, "values")
    ET.indent(task)
    meta = f"<meta>\n{ET.tostring(task, encoding='unicode')}\n</meta>"
    return f'<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n{meta}\n'


def _shape(image: LabelledImage, region: Region, tolerance: float) -> ET.Element:
    shared = {"label": xml_text(image.names[region.label]), "source": "auto", "occluded": "0"}
    outline = image.outline(region, tolerance)
    if not outline.holes:
        points = ";".join(f"{x:.2f},{y:.2f}" for x, y in outline.outer.tolist())
        return ET.Element("polygon", shared | {"points": points})
    left, top, width, height = (str(side) for side in region.box)
    lengths = ", ".join(map(str, rows_run_lengths(region.mask)))
    return ET.Element("mask", shared | {"rle": lengths, "left": left, "top": top, "width": width, "height": height})


def rows_run_lengths(mask: np.ndarray) -> list[int]:
    """Return the lengths of the runs of 0 and 1 in turn of a mask (H,W), row by row; the first may be 0."""
    values = mask.ravel()
    changes = np.flatnonzero(values[1:] != values[:-1]) + 1
    lengths = np.diff(np.concatenate([[0], changes, [len(values)]])).tolist()
    return [0, *lengths] if values[0] else lengths
