"""The earlier name of :func:`ovseg.meta_arch.pixel_scores.render_scores`, which specifications of systems still use."""

from ovseg.meta_arch.pixel_scores import render_scores as paint_scores

__all__ = ["paint_scores"]
