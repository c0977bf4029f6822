"""Weights that the training of OVSegmentor starts from: random ones, and those of published vision transformers."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

# Names of OpenAI's CLIP, below ``visual.``, in timm's order of modules.
_CLIP_BLOCK = {
    "ln_1.": "norm1.",
    "ln_2.": "norm2.",
    "attn.in_proj_": "attn.qkv.",
    "attn.out_proj.": "attn.proj.",
    "mlp.c_fc.": "mlp.fc1.",
    "mlp.c_proj.": "mlp.fc2.",
}
_CLIP_REST = {
    "conv1.": "patch_embed.proj.",
    "positional_embedding": "pos_embed",
    "ln_post.": "norm.",
    "proj": "proj",
}


def initialise(module: nn.Module) -> None:
    """Initialise a linear layer or LayerNorm; an argument of :meth:`torch.nn.Module.apply`.

    Linear weights are drawn from a normal distribution of deviation 0.02, truncated at +-2; biases are 0.
    """
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)


def vit_in_stages(state: Mapping[str, Tensor], first_depth: int) -> dict[str, Tensor]:
    """Return the tensors of a plain vision transformer under the names of a group encoder (specification 2.6).

    Args:
        state: with the names of DINO and timm (``blocks.0.attn.qkv.weight``) or of OpenAI's CLIP
            (``visual.transformer.resblocks.0.attn.in_proj_weight``).
        first_depth: blocks of the first stage; the others are of the second.

    Returns:
        ``patch_embed``, ``layers.*.blocks.*``, ``norm``, ``proj`` of CLIP, and ``pos_embed`` (N, D) without the row of
        the class token. Other tensors (class token, head) are left out.
    """
    if any(name.startswith("visual.") for name in state):
        state = _names_of_timm(state)
    found = {}
    for name, tensor in state.items():
        if block := re.match(r"blocks\.(\d+)\.(.+)", name):
            index = int(block[1])
            stage, place = (0, index) if index < first_depth else (1, index - first_depth)
            found[f"layers.{stage}.blocks.{place}.{block[2]}"] = tensor
        elif name == "pos_embed":
            found[name] = (tensor[0] if tensor.dim() == 3 else tensor)[1:]
        elif name.startswith(("patch_embed.", "norm.")) or name == "proj":
            found[name] = tensor
    return found


def _names_of_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in state.items():
        name = name.removeprefix("visual.")
        if block := re.match(r"transformer\.resblocks\.(\d+)\.(.+)", name):
            for old, new in _CLIP_BLOCK.items():
                if block[2].startswith(old):
                    renamed[f"blocks.{block[1]}.{new}{block[2].removeprefix(old)}"] = tensor
        else:
            for old, new in _CLIP_REST.items():
                if name == old or (old.endswith(".") and name.startswith(old)):
                    renamed[new + name.removeprefix(old)] = tensor
    return renamed
