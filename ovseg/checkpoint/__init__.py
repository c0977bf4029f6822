"""Weight files, read without running any code that may be in them, and written whole."""

from ovseg.checkpoint.loading import load_weights, save_safetensors, save_torch

__all__ = ["load_weights", "save_safetensors", "save_torch"]
