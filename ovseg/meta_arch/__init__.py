"""One file per system; importing this package registers them with Detectron2."""

from ovseg.meta_arch.ovseg import OVSeg, OVSegDEMO

__all__ = ["OVSeg", "OVSegDEMO"]
