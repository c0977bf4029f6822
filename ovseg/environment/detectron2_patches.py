"""Patches with which Detectron2 0.6 runs on current libraries and without its C++ code; data of ``detectron2.py``.

Each :class:`Patch` names a file of the source tree, the exact text to replace, and the number of its occurrences, so
that a source other than the expected one is detected instead of being partly patched.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Patch:
    """Replace every ``old`` in ``file`` by ``new``; ``count`` is how often ``old`` must occur."""

    file: str
    old: str
    new: str
    count: int
    why: str


_ALIAS = "NumPy 1.24 removed the aliases of Python's own types"
_OPS = "the compiled operators are missing; the module must still import"
_NO_OPS = "from detectron2.utils.missing_ops import missing_ops as _C"
_LAUNCH = "distributed runs on CPU use gloo"

PATCHES = (
    Patch("detectron2/data/build.py", "np.int", "int", 2, _ALIAS),
    Patch("detectron2/data/datasets/pascal_voc.py", "np.str", "str", 1, _ALIAS),
    Patch("detectron2/evaluation/pascal_voc_evaluation.py", "np.bool", "bool", 2, _ALIAS),  # one is in a comment
    Patch("detectron2/evaluation/sem_seg_evaluation.py", "dtype=np.int)", "dtype=int)", 2, _ALIAS),
    Patch("detectron2/evaluation/sem_seg_evaluation.py", "np.float", "float", 5, _ALIAS),
    Patch("detectron2/structures/masks.py", "np.bool", "bool", 3, _ALIAS),
    Patch("detectron2/utils/video_visualizer.py", "np.bool", "bool", 1, _ALIAS),
    Patch("detectron2/utils/visualizer.py", "np.bool", "bool", 3, _ALIAS),
    Patch(
        "detectron2/utils/comm.py",
        """    storage = torch.ByteStorage.from_buffer(buffer)
    tensor = torch.ByteTensor(storage).to(device=device)
""",
        "    tensor = torch.frombuffer(bytearray(buffer), dtype=torch.uint8).to(device=device)\n",
        1,
        "PyTorch 2 deprecated typed storages, and warns of them in every distributed run",
    ),
    Patch(
        "detectron2/data/transforms/transform.py",
        "Image.LINEAR",
        "Image.BILINEAR",
        1,
        "Pillow 10 removed the alias",
    ),
    Patch(
        "detectron2/model_zoo/model_zoo.py",
        "import pkg_resources\n",
        "from importlib.resources import files\n",
        1,
        "setuptools 82 removed pkg_resources",
    ),
    Patch(
        "detectron2/model_zoo/model_zoo.py",
        """pkg_resources.resource_filename(
        "detectron2.model_zoo", os.path.join("configs", config_path)
    )""",
        """str(files("detectron2.model_zoo").joinpath("configs", config_path))""",
        1,
        "setuptools 82 removed pkg_resources",
    ),
    Patch(
        "detectron2/export/__init__.py",
        "from .api import *\n",
        """try:
    from .api import *
except ModuleNotFoundError as error:
    if not (error.name or "").startswith("caffe2"):
        raise
""",
        1,
        "torch 2 ships no caffe2; the rest of export, and utils.analysis, must still import",
    ),
    Patch("detectron2/layers/deform_conv.py", "from detectron2 import _C", _NO_OPS, 1, _OPS),
    Patch("detectron2/layers/roi_align_rotated.py", "from detectron2 import _C", _NO_OPS, 1, _OPS),
    Patch("detectron2/layers/rotated_boxes.py", "from detectron2 import _C", _NO_OPS, 1, _OPS),
    Patch("detectron2/evaluation/fast_eval_api.py", "from detectron2 import _C", _NO_OPS, 1, _OPS),
    Patch(
        "detectron2/evaluation/coco_evaluation.py",
        "from detectron2.evaluation.fast_eval_api import COCOeval_opt\n",
        "\nCOCOeval_opt = COCOeval  # the fast one is compiled; pycocotools' own gives the same numbers\n\n",
        1,
        "COCOEvaluator takes the compiled evaluation by default",
    ),
    Patch(
        "detectron2/engine/launch.py",
        """    assert torch.cuda.is_available(), "cuda is not available. Please check your installation."\n""",
        "    has_cuda = torch.cuda.is_available()\n",
        1,
        _LAUNCH,
    ),
    Patch("detectron2/engine/launch.py", 'backend="NCCL"', 'backend="NCCL" if has_cuda else "GLOO"', 1, _LAUNCH),
    Patch(
        "detectron2/engine/launch.py",
        """    assert num_gpus_per_machine <= torch.cuda.device_count()
    torch.cuda.set_device(local_rank)
""",
        """    if has_cuda:
        assert num_gpus_per_machine <= torch.cuda.device_count()
        torch.cuda.set_device(local_rank)
""",
        1,
        _LAUNCH,
    ),
)

NEW_FILES = {
    "detectron2/utils/missing_ops.py": '''"""Stands where the compiled extension ``detectron2._C`` would be."""


class _MissingOps:
    def __getattr__(self, name):
        raise RuntimeError(
            f"Detectron2's compiled operator '{name}' is not in this pure-Python build: build the official "
            "Detectron2 where a C++ compiler is (ovseg install-detectron2 --source git)"
        )


missing_ops = _MissingOps()
''',
    "pyproject.toml": """[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "detectron2"
version = "0.6"
description = "Detectron2 0.6 without its C++ operators, patched for current libraries"
license = "Apache-2.0"
license-files = ["LICENSE"]
requires-python = ">=3.10"
dependencies = [
    "cloudpickle",
    "fvcore>=0.1.5,<0.1.6",
    "hydra-core>=1.1",
    "iopath>=0.1.7",
    "matplotlib",
    "numpy",
    "omegaconf>=2.1",
    "pillow>=7.1",
    "pycocotools>=2.0.2",
    "tabulate",
    "tensorboard",
    "termcolor>=1.1",
    "tqdm>4.29",
    "yacs>=0.1.8",
]

[project.urls]
Source = "https://github.com/facebookresearch/detectron2"

[tool.setuptools]
include-package-data = false

[tool.setuptools.packages.find]
include = ["detectron2*"]
namespaces = false

[tool.setuptools.package-data]
"detectron2.model_zoo" = ["configs/**/*.yaml", "configs/**/*.py"]
""",
}
"""Files added to the tree; this ``pyproject.toml`` replaces the ``setup.py`` that compiles C++."""

REPLACED_FILES = ("setup.py", "setup.cfg")
"""Files of the tree that are removed: setup.py imports torch, compiles C++ and pins black==21.4b2."""

MOVED_FOLDERS = {
    "projects/PointRend/point_rend": "detectron2/projects/point_rend",
    "projects/DeepLab/deeplab": "detectron2/projects/deeplab",
    "projects/Panoptic-DeepLab/panoptic_deeplab": "detectron2/projects/panoptic_deeplab",
}
"""Projects that Detectron2 installs as ``detectron2.projects.*``."""
