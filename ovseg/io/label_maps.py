"""Reading label files."""

from __future__ import annotations

import numpy as np
from detectron2.utils.file_io import PathManager

from ovseg.errors import OvsegError, reason_of
from ovseg.io.images import open_image


def read_labels(file_name: str) -> np.ndarray:
    """Read a label file as it is: no scaling, no palette, 8 or 16 bit.

    Returns:
        (H,W) array of an integer type.

    Raises:
        OvsegError: the file is missing, broken, or not a single-channel image of integers.
    """
    remedy = "prepare its data set again"
    try:
        with PathManager.open(str(file_name), "rb") as file, open_image(file) as image:
            labels = np.array(image)
    except FileNotFoundError as error:
        raise OvsegError(f"label file {file_name} is missing: {remedy}") from error
    except Exception as error:  # Pillow's decoders raise almost anything on damaged data
        raise OvsegError(f"label file {file_name} cannot be read ({reason_of(error)}): {remedy}") from error
    if labels.ndim != 2 or not np.issubdtype(labels.dtype, np.integer):
        raise OvsegError(
            f"label file {file_name} has shape {labels.shape} and type {labels.dtype}: labels must be a "
            "single-channel image of integers"
        )
    return labels
