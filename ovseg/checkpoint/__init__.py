"""Weight files, read without running any code that may be in them, and written whole."""

from ovseg.checkpoint.loading import load_model, load_weights
from ovseg.checkpoint.saving import save_safetensors, save_torch
from ovseg.checkpoint.skip_init import skip_initialisation
from ovseg.checkpoint.state_dicts import tensor_names

__all__ = [
    "load_model",
    "load_weights",
    "save_safetensors",
    "save_torch",
    "skip_initialisation",
    "tensor_names",
]
