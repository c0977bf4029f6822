"""Text encoders of the library transformers: BERT, DistilBERT, RoBERTa, built without a network connection."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from torch import Tensor, nn

from ovseg.checkpoint.first_weights import initialise
from ovseg.checkpoint.state_dicts import read_state_dict
from ovseg.errors import OvsegError, argument_names, reason_of, shown
from ovseg.io.files import is_dir, is_file
from ovseg.vocabulary.wordpiece import TextTokenizer, load_tokenizer

logger = logging.getLogger(__name__)
KEY = "MODEL.OVSEGMENTOR.TEXT_ENCODER"
# Kind and sizes of published encoders, where they differ from the defaults of transformers.
PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "bert-base-uncased": ("bert", {}),
    "distilbert-base-uncased": ("distilbert", {}),
    "roberta-base": (
        "roberta",
        {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5},
    ),
    "prajjwal1/bert-medium": (
        "bert",
        {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "intermediate_size": 2048},
    ),
}


class TextEncoder(nn.Module):
    """Text encoder of transformers, with random weights until others are loaded.

    Args:
        config: name of an encoder, folder, or JSON file of sizes.
        vocab: see :func:`ovseg.vocabulary.wordpiece.load_tokenizer`.
        fixed: do not train it; dropout stays active in training.

    Raises:
        OvsegError: ``config`` is none, or transformers is not installed.
    """

    def __init__(self, config: str = "bert-base-uncased", vocab: str = "", fixed: bool = False):
        super().__init__()
        self.config, self.vocab = config, vocab
        settings = _settings(config)
        self.transformer = _library().AutoModel.from_config(settings)
        self.width: int = settings.hidden_size
        self.max_length = _max_length(settings)
        if fixed:
            self.requires_grad_(False)

    @classmethod
    def from_keys(cls, keys: CfgNode) -> TextEncoder:
        """Return the encoder of ``MODEL.OVSEGMENTOR.TEXT_ENCODER``.

        Raises:
            OvsegError: its width is not ``WIDTH``, unless that has its default.
        """
        encoder = cls(keys.CONFIG, keys.VOCAB, keys.FIXED)
        if keys.WIDTH not in (encoder.width, 768):
            raise OvsegError(f"{KEY}.WIDTH is {keys.WIDTH}: {keys.CONFIG} has {encoder.width} channels, give that")
        return encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the last hidden states (B, L, width) of tokens int64 (B, L), also those of padding.

        Args:
            attention_mask: 1 = text, 0 = padding, which no token attends to.
        """
        return self.transformer(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        """The tokenizer, read at its first use.

        Raises:
            OvsegError: it cannot be read, or has more tokens than the encoder.
        """
        return _tokenizer(self.config, self.vocab, self.transformer.config)

    def start_from(self, weights: str, pretrained: bool) -> None:
        """Load the weights that training starts from.

        Args:
            weights: file, or folder with ``model.safetensors`` or ``pytorch_model.bin``; "" for those of the name
                :attr:`config`, which transformers may fetch.
            pretrained: False initialises linear layers and LayerNorms randomly afterwards, as the original; without
                ``weights`` nothing is loaded then.

        Raises:
            OvsegError: the weights cannot be read, or are those of another encoder.
        """
        if not weights and not pretrained:
            return
        source = weights or self.config
        with argument_names({"weights": f"{KEY}.WEIGHTS"}):
            state = _bare(_read(source))
        own = self.transformer.state_dict()
        wrong = [name for name in own if name in state and state[name].shape != own[name].shape]
        absent = [name for name in own if name not in state and not name.startswith("pooler.")]
        if wrong or absent:
            kind = f"lack {absent[0]}" if absent else f"have another shape of {wrong[0]}"
            raise OvsegError(f"the weights {source} {kind}: give those of {self.config} as {KEY}.WEIGHTS")
        self.transformer.load_state_dict({name: state[name] for name in own if name in state}, strict=False)
        if not pretrained:
            self.transformer.apply(initialise)
        logger.info("text encoder: %d tensors from %s", len(own), source)


def check_texts(keys: CfgNode, length: int) -> None:
    """Check that a text encoder can be trained with texts of a length, without building it.

    Args:
        keys: ``MODEL.OVSEGMENTOR.TEXT_ENCODER``.
        length: ``INPUT.TEXT_AUG.MAX_SEQ_LEN``.

    Raises:
        OvsegError: it takes shorter texts only, or fewer tokens than there are in the list; or one of its files cannot
            be read.
    """
    settings = _settings(keys.CONFIG)
    if length > (longest := _max_length(settings)):
        raise OvsegError(
            f"INPUT.TEXT_AUG.MAX_SEQ_LEN is {length}, but the text encoder {keys.CONFIG} takes up to {longest} tokens: "
            "set it to that or less"
        )
    _tokenizer(keys.CONFIG, keys.VOCAB, settings)


def _tokenizer(config: str, vocab: str, settings: Any) -> TextTokenizer:
    """Return the tokenizer of an encoder with these settings; see :attr:`TextEncoder.tokenizer`."""
    tokenizer = load_tokenizer(config, vocab, _max_length(settings))
    if tokenizer.vocab_size > settings.vocab_size:
        raise OvsegError(
            f"{vocab or config} has {tokenizer.vocab_size} tokens, the text encoder {settings.vocab_size}: correct "
            f"{KEY}.VOCAB"
        )
    return tokenizer


def _max_length(settings: Any) -> int:
    """Return how many tokens of a text an encoder takes; RoBERTa's first two positions are reserved for padding."""
    return settings.max_position_embeddings - (2 if settings.model_type == "roberta" else 0)


def _settings(config: str) -> Any:
    """Return the configuration object of transformers."""
    library = _library()
    path = Path(config) / "config.json" if is_dir(config) else Path(config)
    try:
        if is_file(path):
            content = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(content, Mapping):
                raise ValueError("it must hold keys with values")
            return library.AutoConfig.for_model(content.get("model_type", "bert"), **_without(content, "model_type"))
        if config in PUBLISHED:
            kind, sizes = PUBLISHED[config]
            return library.AutoConfig.for_model(kind, **sizes)
        if config.endswith(".json") or config.startswith(("/", "./", "../")):
            raise FileNotFoundError("there is no such file or folder")
        return library.AutoConfig.from_pretrained(config)
    except Exception as error:  # of any type, by transformers or the hub's client
        names = ", ".join(PUBLISHED)
        raise OvsegError(
            f"{KEY}.CONFIG is {shown(config)}, of which the sizes cannot be read ({reason_of(error)}): give one of "
            f"{names}, a folder with config.json, or a JSON file of sizes"
        ) from error


def _read(source: str) -> dict[str, Tensor]:
    """Return the tensors of a file, a folder, or a name that transformers fetches."""
    if is_dir(source):
        files = [Path(source) / name for name in ("model.safetensors", "pytorch_model.bin")]
        found = next(filter(is_file, files), None)
        if found is None:
            raise OvsegError(f"{source} has no {files[0].name} or {files[1].name}: give a file as {KEY}.WEIGHTS")
        return read_state_dict(found)
    if is_file(source) or source.startswith(("/", "./", "../")):
        return read_state_dict(source)
    try:
        return _library().AutoModel.from_pretrained(source).state_dict()
    except Exception as error:  # of any type, by transformers or the hub's client
        raise OvsegError(
            f"the weights of {shown(source)} cannot be fetched ({reason_of(error)}): copy them here and name the file "
            f"or folder as {KEY}.WEIGHTS, or set {KEY}.PRETRAINED to False"
        ) from error


def _bare(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors without the prefix of a model with a head, and with the names of LayerNorms of old files."""
    prefixes = ("bert.", "distilbert.", "roberta.", "transformer.")
    prefix = next((part for part in prefixes if any(name.startswith(part + "embeddings.") for name in state)), "")
    renamed = {}
    for name, tensor in state.items():
        if name.startswith(prefix):
            name = name.removeprefix(prefix).replace("LayerNorm.gamma", "LayerNorm.weight")
            renamed[name.replace("LayerNorm.beta", "LayerNorm.bias")] = tensor
    return renamed


def _without(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key != name}


def _library() -> Any:
    """Return the module transformers.

    Raises:
        OvsegError: it is not installed.
    """
    try:
        import transformers  # imports slowly, and most systems have another text encoder
    except ModuleNotFoundError as error:
        raise OvsegError(
            f"{KEY} needs the package transformers, which is not installed: pip install ovseg[bert]"
        ) from error
    return transformers
