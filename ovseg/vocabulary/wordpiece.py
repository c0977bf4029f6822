"""Tokenizers of text encoders such as BERT: uncased WordPiece from a ``vocab.txt``, others from transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ovseg.errors import OvsegError, reason_of, shown
from ovseg.io.files import is_dir, is_file
from ovseg.vocabulary.entities import MASK

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", MASK)
KEY = "MODEL.OVSEGMENTOR.TEXT_ENCODER.VOCAB"
LARGEST = 16_777_216  # bytes of a list of tokens


class TextTokenizer:
    """Turns texts into numbers for a text encoder, with its marks of start and end; picklable.

    Args:
        encode: texts -> the numbers of each, with marks; of at most the given length, if it is not None.
        padding: the number that fills up shorter texts.
        vocab_size: numbers are below it.
        mask: what the tokenizer calls :data:`MASK`.
        max_length: most numbers of a text that the encoder takes.
    """

    def __init__(
        self,
        encode: Callable[[Sequence[str], int | None], list[list[int]]],
        *,
        padding: int = 0,
        vocab_size: int,
        mask: str = MASK,
        max_length: int | None = None,
    ):
        self.encode, self.padding, self.vocab_size = encode, padding, vocab_size
        self.mask, self.max_length = mask, max_length

    def __call__(self, texts: Sequence[str], length: int | None = None) -> tuple[Tensor, Tensor]:
        """Return ``input_ids`` and ``attention_mask`` (1 = text, 0 = padding), int64 (n, L).

        Args:
            texts: n texts; :data:`MASK` in them is one token.
            length: L, which texts are padded and cut to; None for the longest text, cut to what the encoder takes.
        """
        texts = [text.replace(MASK, self.mask) for text in texts]
        rows = self.encode(texts, length or self.max_length)
        longest = length or max(map(len, rows), default=0)
        ids = torch.full((len(rows), longest), self.padding, dtype=torch.int64)
        mask = torch.zeros(len(rows), longest, dtype=torch.int64)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = torch.tensor(row)
            mask[index, : len(row)] = 1
        return ids, mask


class _WordPiece:
    """BERT's uncased tokenizer of one list of tokens (Devlin et al., arXiv 1810.04805)."""

    def __init__(self, tokens: Sequence[str]):
        self.tokens = tuple(tokens)
        self._tokenizer = _build({token: index for index, token in enumerate(tokens)})

    def __call__(self, texts: Sequence[str], length: int | None) -> list[list[int]]:
        if length is None:
            self._tokenizer.no_truncation()
        else:
            self._tokenizer.enable_truncation(length)
        return [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]


class _OfTransformers:
    """Fast tokenizer of transformers."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer

    def __call__(self, texts: Sequence[str], length: int | None) -> list[list[int]]:
        options = {"truncation": True, "max_length": length} if length else {}
        return self.tokenizer(list(texts), return_attention_mask=False, **options)["input_ids"]


def read_vocabulary(path: str | Path, max_length: int | None = None) -> TextTokenizer:
    """Return the tokenizer of a ``vocab.txt``: a token per line, whose number is that of the line, from 0.

    Raises:
        OvsegError: the file cannot be read, or lacks a token of :data:`SPECIAL`.
    """
    try:
        if (size := Path(path).stat().st_size) > LARGEST:
            raise OvsegError(f"{path} has {size} bytes: give a list of tokens, vocab.txt, as {KEY}")
        text = Path(path).read_text(encoding="utf-8")  # with "\n" for each kind of line end
    except (OSError, ValueError) as error:
        raise OvsegError(f"the list of tokens {path} cannot be read ({reason_of(error)}): correct {KEY}") from error
    tokens = text.removesuffix("\n").split("\n")  # splitlines() would also split at U+0085 and U+2028
    if absent := [token for token in SPECIAL if token not in tokens]:
        raise OvsegError(f"{path} lacks the token {absent[0]}: give the vocab.txt of an uncased BERT as {KEY}")
    return TextTokenizer(
        _WordPiece(tokens), padding=tokens.index("[PAD]"), vocab_size=len(tokens), max_length=max_length
    )


def load_tokenizer(config: str, vocab: str = "", max_length: int | None = None) -> TextTokenizer:
    """Return the tokenizer of a text encoder.

    Args:
        config: ``MODEL.OVSEGMENTOR.TEXT_ENCODER.CONFIG``: a name, a folder, or a JSON file of sizes.
        vocab: ``TEXT_ENCODER.VOCAB``: a ``vocab.txt``; "" for the one in the folder of ``config``, or that of the name.
        max_length: most tokens of a text that the encoder takes.

    Raises:
        OvsegError: there is none, or it cannot be read.
    """
    if vocab:
        return read_vocabulary(vocab, max_length)
    folder = Path(config) if is_dir(config) else Path(config).parent if is_file(config) else None
    if folder is not None and is_file(folder / "vocab.txt"):
        return read_vocabulary(folder / "vocab.txt", max_length)
    if folder is not None and not is_dir(config):
        raise OvsegError(f"there is no vocab.txt next to {config}: name the list of tokens as {KEY}")
    try:
        from transformers import AutoTokenizer  # imports slowly, and most systems have no such text encoder

        tokenizer = AutoTokenizer.from_pretrained(config)
    except Exception as error:  # of any type, by transformers or the hub's client
        raise OvsegError(
            f"cannot get the tokenizer of {shown(config)} ({reason_of(error)}): copy its vocab.txt here, and name it "
            f"as {KEY}"
        ) from error
    return TextTokenizer(
        _OfTransformers(tokenizer),
        padding=tokenizer.pad_token_id or 0,
        vocab_size=len(tokenizer),
        mask=tokenizer.mask_token or MASK,
        max_length=max_length,
    )


def _build(numbers: dict[str, int]) -> Any:
    """Return the tokenizer of the library tokenizers.

    Raises:
        OvsegError: it is not installed.
    """
    try:
        from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
    except ModuleNotFoundError as error:
        raise OvsegError(
            "texts for BERT need the package transformers, which is not installed: pip install ovseg[bert]"
        ) from error
    tokenizer = Tokenizer(models.WordPiece(numbers, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    marks = [(mark, numbers[mark]) for mark in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=marks)
    tokenizer.add_special_tokens([AddedToken(token) for token in SPECIAL])
    return tokenizer
