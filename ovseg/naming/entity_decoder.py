"""``EntityDecoder``: fills in the hidden words of a caption from the groups of its image (OVSegmentor, section 5.2)."""

from __future__ import annotations

from torch import Tensor, nn

from ovseg.checkpoint.first_weights import initialise
from ovseg.proposals.group_blocks import Assign, CrossBlock, self_attention_block

NUM_HEADS = 8


class EntityBlock(nn.Module):
    """Cross attention of question tokens to groups, then self-attention of the question tokens.

    ``assign`` is in published checkpoints and is not used.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.norm_tokens, self.norm_x, self.norm_new_x = (nn.LayerNorm(dim) for _ in range(3))
        self.pre_assign_attn = CrossBlock(dim, NUM_HEADS)
        self.post_attn = self_attention_block(dim, NUM_HEADS)
        self.assign = Assign(dim)

    def forward(self, question: Tensor, groups: Tensor, state: Tensor | None, keys: Tensor | None) -> Tensor:
        """Return the next state (B, L, m), from that of the block before, or None.

        Args:
            keys: bool (B, 1, 1, L), the tokens that self-attention attends to; None for all.
        """
        found = self.pre_assign_attn(self.norm_tokens(question), self.norm_x(groups))
        state = found if state is None else state + found
        state = self.post_attn(state) if keys is None else self.post_attn(state, attn_mask=keys)
        return self.norm_new_x(state + found)


class EntityDecoder(nn.Module):
    """Decoder of the tokens of questions.

    Args:
        dim: m, channels of both its inputs; a multiple of :data:`NUM_HEADS`.
        num_layers: blocks; each one reads the same questions and groups.
    """

    def __init__(self, dim: int, num_layers: int = 1):
        super().__init__()
        self.blocks = nn.ModuleList(EntityBlock(dim) for _ in range(num_layers))
        self.apply(initialise)

    def forward(self, question: Tensor, groups: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return the tokens (B, L, m) of questions (B, L, m), completed from the groups (B, K, m).

        Args:
            attention_mask: (B, L), 1 = text, 0 = padding; None attends to padding, too, as published models do. Then
                results depend on L.
        """
        keys = None if attention_mask is None else attention_mask.bool()[:, None, None]
        state = None
        for block in self.blocks:
            state = block(question, groups, state, keys)
        return state
