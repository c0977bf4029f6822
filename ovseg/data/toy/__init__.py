"""A procedural world to train, evaluate and show the whole project without any download.

``make_scene(seed)`` draws one scene; ``toy_sem_seg_train`` and ``toy_sem_seg_val`` are the data sets.
"""

from ovseg.data.toy.catalog import generator_version, register_toy, render_split
from ovseg.data.toy.scene import Scene, Thing, make_scene
from ovseg.data.toy.words import BASE_CLASSES, CLASS_NAMES, COLOURS, NOVEL_CLASSES, SHAPES, STUFF

__all__ = [
    "BASE_CLASSES",
    "CLASS_NAMES",
    "COLOURS",
    "NOVEL_CLASSES",
    "SHAPES",
    "STUFF",
    "Scene",
    "Thing",
    "generator_version",
    "make_scene",
    "register_toy",
    "render_split",
]
