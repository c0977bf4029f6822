"""The web of the toy world: image-text pairs as they are found there, of which most show one thing or a ground."""

from __future__ import annotations

import json
import logging
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import cv2
from iopath.common.file_io import file_lock

from ovseg.io.cpus import usable_cpus
from ovseg.io.files import atomic_path
from ovseg.io.progress import progress_bar
from ovseg.toy.cache import cannot_keep, missing_scenes, record_path, scenes_folder
from ovseg.toy.clip.batches import ViewRecipe, views

logger = logging.getLogger(__name__)

RECIPE = ViewRecipe(margin=(1.2, 2.0), close_ups=2, patches=1)  # of each scene, with the scene itself


def render_web(seeds: range, root: Path | None = None) -> list[dict[str, Any]]:
    """Draw what is missing of the views of scenes, and list them.

    Several processes may ask at once: one draws, the others wait.

    Args:
        seeds: of the scenes.
        root: folder to keep the views in; by default one in the user's cache.

    Returns:
        Dataset dicts with ``file_name`` (8 bit PNG), ``image_id``, ``height``, ``width`` and two ``captions``, without
        labels.

    Raises:
        OvsegError: the cache cannot be written.
    """
    folder = (root or scenes_folder()) / "web"
    with cannot_keep(folder):
        if missing_scenes(folder, seeds):
            folder.mkdir(parents=True, exist_ok=True)
            with file_lock(str(folder)):
                missing = missing_scenes(folder, seeds)
                logger.info("drawing views of %d toy scenes (once; they are kept in the cache)", len(missing))
                with progress_bar(transient=True) as progress, ThreadPoolExecutor(min(8, usable_cpus())) as pool:
                    task = progress.add_task("drawing views of toy scenes", total=len(missing))
                    for _ in pool.map(partial(_write_views, folder), missing):
                        progress.advance(task)
    records = [record for seed in seeds for record in json.loads(record_path(folder, seed).read_text(encoding="utf-8"))]
    return [record | {"file_name": str(folder / record["file_name"])} for record in records]


def _write_views(folder: Path, seed: int) -> None:
    """Write the views of one scene, then the record that says that they are complete."""
    records = []
    for number, (pixels, captions) in enumerate(views(seed, RECIPE)):
        name = f"images/{seed:07d}_{number}.png"
        with atomic_path(folder / name) as path:
            path.write_bytes(cv2.imencode(".png", pixels[:, :, ::-1])[1].tobytes())
        height, width = pixels.shape[:2]
        identity = {"file_name": name, "image_id": f"{seed}_{number}", "height": height, "width": width}
        records.append(identity | {"captions": list(captions)})
    with atomic_path(record_path(folder, seed)) as path:
        path.write_text(json.dumps(records), encoding="utf-8")
