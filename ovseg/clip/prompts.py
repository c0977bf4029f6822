"""Learned prompts: vectors around the tokens of a word, in place of the words of a template.

Zhou et al., "Learning to Prompt for Vision-Language Models" (CoOp), arXiv 2109.01134; with a final dot, as in Xu et
al., "A Simple Baseline for Open-Vocabulary Semantic Segmentation", arXiv 2112.14757, section 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor, nn

from ovseg.checkpoint.state_dicts import read_state_dict
from ovseg.errors import OvsegError, argument, shown

MODULE = "prompt_learner"  # in the names of published checkpoints
INITIAL_STD = 0.02


class PromptLearner(nn.Module):
    """Module that makes the input of CLIP's text tower of words: ``start, prefix, word, suffix, ".", end, padding``.

    The vectors are the parameters ``prefix_prompt`` (P, width) and ``suffix_prompt`` (S, width), each only if it has
    rows. The embeddings of the marks are copies of rows of CLIP's table, buffers (1, width) of the state, as in the
    published files; :attr:`signal_tokens` has the rows.

    Args:
        clip_model: open_clip's model with a causal text tower and CLIP's tokenizer.
        tokenizer: of the model.
        shape: P and S.

    Raises:
        OvsegError: another text tower, no vector, or no room for a word.
    """

    def __init__(self, clip_model: nn.Module, tokenizer: Any, shape: Sequence[int]):
        super().__init__()
        if not isinstance(clip_model, CLIP) or not isinstance(tokenizer, SimpleTokenizer):
            raise OvsegError(
                f"{argument('text')} is learnable, which needs a CLIP with CLIP's own text tower and tokenizer: choose "
                "ViT-B/16 or ViT-L/14, or other templates"
            )
        if len(shape) != 2 or not sum(shape) or self._room(clip_model, shape) < 1:
            raise OvsegError(f"{argument('prompt_shape')} is {shown(list(shape))}: give two numbers, such as [16, 0]")
        table = clip_model.token_embedding.weight
        for name, rows in zip(("prefix_prompt", "suffix_prompt"), shape, strict=True):
            vectors = nn.Parameter(torch.randn(rows, table.shape[1]) * INITIAL_STD) if rows else None
            self.register_parameter(name, vectors)
        (dot,) = tokenizer.encode(".")
        self.signal_tokens = {
            "start_signal": tokenizer.sot_token_id,
            "dot_signal": dot,
            "end_signal": tokenizer.eot_token_id,
            "pad_signal": 0,
        }
        for name, token in self.signal_tokens.items():
            self.register_buffer(name, table[token : token + 1].detach().clone())
        self.shape, self.room = tuple(shape), self._room(clip_model, shape)

    @staticmethod
    def _room(clip_model: nn.Module, shape: Sequence[int]) -> int:
        """Return the number of tokens that a word may have, between the vectors and the marks."""
        return len(clip_model.positional_embedding) - sum(shape) - 3

    @property
    def trains(self) -> bool:
        """Whether the vectors are trained."""
        return any(vectors.requires_grad for vectors in self.parameters())

    def forward(self, table: Tensor, words: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Return embeddings of tokens, without positions.

        Args:
            table: CLIP's token embeddings (vocabulary, width).
            words: the tokens of K words, without marks, at most :attr:`room` each.

        Returns:
            float (K, n, width), padded to the longest word, and the places of the end marks, int64 (K,).
        """
        rows = []
        for tokens in words:
            word = table[torch.tensor(tokens, dtype=torch.long, device=table.device)]
            parts = (self.start_signal, self.prefix_prompt, word, self.suffix_prompt, self.dot_signal, self.end_signal)
            rows.append(torch.cat([part for part in parts if part is not None]))
        ends = torch.tensor([len(row) - 1 for row in rows], device=table.device)
        padded = [torch.cat((row, self.pad_signal.expand(int(ends.max()) + 1 - len(row), -1))) for row in rows]
        return torch.stack(padded), ends

    def load(self, path: str | Path) -> None:
        """Load the vectors of a checkpoint, and freeze them.

        Args:
            path: a weight file; its tensors below ``prompt_learner.`` are used, whatever is before that.

        Raises:
            OvsegError: the file cannot be read, has no such tensors, or they have another shape.
        """
        named = ((name.rpartition(f"{MODULE}."), tensor) for name, tensor in read_state_dict(path).items())
        found = {name: tensor for (_, mark, name), tensor in named if mark}
        own = self.state_dict()
        for name, ours in own.items():
            if name not in found and name not in self.signal_tokens:
                raise OvsegError(
                    f"{path} has no {MODULE}.{name}: give a file of tools/tune_text_prompts.py as "
                    f"{argument('prompt_checkpoint')}, and its shape as {argument('prompt_shape')}"
                )
            if name in found and found[name].shape != ours.shape:
                raise OvsegError(
                    f"{path} has {MODULE}.{name} of shape {list(found[name].shape)}, not {list(ours.shape)}: set "
                    f"{argument('prompt_shape')} to its rows, or choose the CLIP that it was made with"
                )
        if extra := found.keys() - own.keys():
            raise OvsegError(
                f"{path} has {MODULE}.{min(extra)}, which {argument('prompt_shape')} {list(self.shape)} does not: set "
                "it to the shape in the file"
            )
        self.load_state_dict(own | {name: tensor.to(own[name].dtype) for name, tensor in found.items()})
        self.requires_grad_(False)
