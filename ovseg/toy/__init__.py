"""A procedural world to train, evaluate and show the whole project without any download.

``make_scene(seed)`` draws one scene; ``toy_sem_seg_train`` and ``toy_sem_seg_val`` are the data sets.
"""

from ovseg.toy.classes import BASE_CLASSES, CLASS_NAMES, COLOURS, NOVEL_CLASSES, SHAPES, STUFF
from ovseg.toy.registration import register_toy, render_split
from ovseg.toy.scene import Scene, Thing, make_scene

__all__ = [
    "BASE_CLASSES",
    "CLASS_NAMES",
    "COLOURS",
    "NOVEL_CLASSES",
    "SHAPES",
    "STUFF",
    "Scene",
    "Thing",
    "make_scene",
    "register_toy",
    "render_split",
]
