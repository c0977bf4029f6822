"""Whether what is not a plain requirement of the package is installed."""

from __future__ import annotations

from importlib.util import find_spec

from ovseg.errors import OvsegError

REMEDIES = {
    "torch": "PyTorch is not installed: run `pip install torch torchvision`",
    "detectron2": "Detectron2 is not installed, which every model needs: run `ovseg install-detectron2`",
}


class MissingPackage(OvsegError, ImportError):
    """A package that a part of ovseg needs is not installed, or does not import."""


def has_detectron2() -> bool:
    """Return whether PyTorch and Detectron2 are installed; nothing is imported."""
    return not _missing()


def require_detectron2() -> None:
    """Import Detectron2.

    Raises:
        MissingPackage: it or PyTorch is not installed, or does not import; the message has the remedy.
    """
    if missing := _missing():
        raise MissingPackage(REMEDIES[missing[0]])
    try:
        import detectron2.layers  # noqa: F401  (PyTorch and, in a compiled build, the extension)
    except ImportError as error:
        raise MissingPackage(
            f"Detectron2 is installed and does not import ({error}): `pip uninstall detectron2`, then "
            "`ovseg install-detectron2`"
        ) from error


def _missing() -> list[str]:
    """Return those of PyTorch and Detectron2 that are not installed."""
    specs = {name: find_spec(name) for name in REMEDIES}
    return [name for name, spec in specs.items() if spec is None or spec.origin is None]  # None: a folder of that name
