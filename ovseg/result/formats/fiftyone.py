"""FiftyOne's detections: https://docs.voxel51.com."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ovseg.errors import OvsegError
from ovseg.result.formats.labelled_set import rounded
from ovseg.result.regions import LabelledImage

if TYPE_CHECKING:
    import fiftyone


def fiftyone_detections(image: LabelledImage) -> fiftyone.Detections:
    """Return a detection per region: box as shares of the size, mask of the box, confidence.

    Raises:
        OvsegError: FiftyOne is not installed.
    """
    try:
        import fiftyone
    except ImportError as error:
        raise OvsegError("FiftyOne is not installed: run pip install fiftyone") from error
    height, width = image.size
    detections = []
    for region in image.regions:
        left, top, columns, rows = region.box
        box = [left / width, top / height, columns / width, rows / height]
        score = rounded(region.score)
        label = image.names[region.label]
        detections.append(fiftyone.Detection(label=label, bounding_box=box, mask=region.mask, confidence=score))
    return fiftyone.Detections(detections=detections)
