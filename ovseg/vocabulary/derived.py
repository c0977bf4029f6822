"""Label sets derived from others: reordered, renamed, a subset, or with background as a class.

Each is a dict in the format of the label set files, with ``classes``, one dict per train id.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Data = dict[str, Any]
Read = Callable[[str], Data]


def _coco_stuff_seen(read: Read) -> Data:
    return _split(read, "base", "COCO-Stuff-156", "COCO-Stuff, the 156 seen classes of the zero-shot split")


def _coco_stuff_unseen(read: Read) -> Data:
    return _split(read, "novel", "COCO-Stuff-15", "COCO-Stuff, the 15 unseen classes of the zero-shot split")


def _split(read: Read, split: str, tag: str, title: str) -> Data:
    data = read("coco_stuff_171")
    members = data.pop("splits")[split]
    return {**data, "tag": tag, "title": title, "classes": [data["classes"][index] for index in members]}


def _coco_object(read: Read) -> Data:
    """Return GroupViT's label set: background (everything that is not a thing), then COCO's things; nothing ignored."""
    data = read("coco_panoptic_133")
    things = data["classes"][:80]
    return {
        **data,
        **{"tag": "COCO-Object", "title": "COCO-Object: background + 80 things"},
        **{"background": "word", "background_id": 0, "classes": [_background(None), *things]},
    }


def _pascal_context_alphabetical(read: Read) -> Data:
    """Return PC-59 in the order of SAN, CAT-Seg, FC-CLIP, ODISE and mmsegmentation.

    Some of these write "diningtable" for "table".
    """
    data = read("pascal_context_59")
    classes = sorted(data["classes"], key=lambda entry: entry["alphabetical_id"])
    return {**data, "title": "PASCAL Context, 59 most frequent classes in alphabetical order", "classes": classes}


def _pascal_context_60(read: Read) -> Data:
    """Return mmsegmentation's label set, in which all pixels outside the 59 classes are background."""
    data = _pascal_context_alphabetical(read)
    return {
        **data,
        **{"tag": "PC-60", "title": "PASCAL Context, background + 59 classes in alphabetical order"},
        **{"background": "word", "background_id": 0, "classes": [_background(None), *data["classes"]]},
    }


def _pascal_voc_20b(read: Read) -> Data:
    """Return CAT-Seg's label set, with background last, queried by the leftover words (OpenSeg's rule)."""
    data = _with_voc_background(read)
    background, *things = data["classes"]
    return {
        **data,
        **{"tag": "PAS-20b", "title": "PASCAL VOC 2012, 20 objects + background by leftover words (PAS-20b)"},
        **{"background": "leftover words", "background_id": len(things), "classes": [*things, background]},
    }


def _pascal_voc_21(read: Read) -> Data:
    """Return the label set of FC-CLIP and ODISE, with background first and the leftover words as its synonyms."""
    return {
        **_with_voc_background(read),
        **{"tag": "PAS-21", "title": "PASCAL VOC 2012, background + 20 objects (PAS-21)"},
        **{"background": "synonyms", "background_id": 0},
    }


def _with_voc_background(read: Read) -> Data:
    data = read("pascal_voc_20")
    # PC-59 begins with the 20 classes of VOC
    leftover = [entry["name"] for entry in read("pascal_context_59")["classes"][len(data["classes"]) :]]
    background = _background(0, data["background_synonyms"])
    return {**data, "background_words": leftover, "classes": [background, *data["classes"]]}


def _coco_stuff_172(read: Read) -> Data:
    """Return COCO-Stuff as in GroupViT and OVSegmentor: background (pixels without a label), then the classes."""
    data = read("coco_stuff_171")
    data.pop("splits")
    return {
        **data,
        **{"tag": "COCO-Stuff-172", "title": "COCO-Stuff, background + 171 classes"},
        **{"background": "word", "background_id": 0, "classes": [_background(None), *data["classes"]]},
    }


def _ovsegmentor_voc_21(read: Read) -> Data:
    data = read("pascal_voc_20")
    names = {"diningtable": "table", "pottedplant": "plant", "tvmonitor": "monitor"}
    data |= {"background": "word", "background_id": 0, "classes": [_background(0), *data["classes"]]}
    return _in_words_of_ovsegmentor(data, "PAS-21", names)


def _ovsegmentor_context_60(read: Read) -> Data:
    names = {"aeroplane": "airplane", "pottedplant": "plant", "tvmonitor": "monitor"}
    return _in_words_of_ovsegmentor(_pascal_context_60(read), "PC-60", names)


def _ovsegmentor_ade20k_150(read: Read) -> Data:
    data = read("ade20k_150")
    names = {entry["name"]: entry["name"].split(",")[0] for entry in data["classes"]}
    other = {"window": "windowpane", "tub": "bathtub", "rail": "railing", "street lamp": "streetlight"}
    other |= {"tv": "television receiver", "plane": "airplane", "clothes": "apparel", "pool": "swimming pool"}
    other |= {"falls": "waterfall", "trash can": "ashcan", "bed": "bed "}  # the blank is in the published list
    return _in_words_of_ovsegmentor(data, "A-150", names | other)


def _in_words_of_ovsegmentor(data: Data, tag: str, names: dict[str, str]) -> Data:
    """Return a label set with the names of OVSegmentor's evaluation (its specification, appendix C)."""
    classes = [
        {**entry, "name": name.strip(), "registry_name": name}
        for entry in data["classes"]
        for name in (names.get(entry["name"], entry["name"]),)
    ]
    title = f"{data['title'].partition(' (')[0]}, in the words of OVSegmentor"
    return {**data, "tag": f"{tag}-OVSegmentor", "title": title, "classes": classes}


def _background(dataset_id: int | None, synonyms: list[str] | None = None) -> Data:
    return {"name": "background", "dataset_id": dataset_id, "synonyms": synonyms or ["background"]}


DERIVED: dict[str, Callable[[Read], Data]] = {
    "coco_object_80": _coco_object,
    "coco_stuff_15_unseen": _coco_stuff_unseen,
    "coco_stuff_156_seen": _coco_stuff_seen,
    "coco_stuff_172": _coco_stuff_172,
    "ovsegmentor_ade20k_150": _ovsegmentor_ade20k_150,
    "ovsegmentor_context_60": _ovsegmentor_context_60,
    "ovsegmentor_voc_21": _ovsegmentor_voc_21,
    "pascal_context_59_alphabetical": _pascal_context_alphabetical,
    "pascal_context_60": _pascal_context_60,
    "pascal_voc_20b": _pascal_voc_20b,
    "pascal_voc_21": _pascal_voc_21,
}
