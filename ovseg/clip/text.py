"""Text embeddings of words, cached in memory and on disk (specification, section 4)."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.model import CLIP
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ovseg.clip.prompts import PromptLearner
from ovseg.errors import OvsegError, argument
from ovseg.io.files import atomic_path

logger = logging.getLogger(__name__)

PROMPTS_AT_A_TIME = 512
WORDS_IN_MEMORY = 8192
_NORM_TOLERANCE = 1e-3
_FORMAT = 4  # of a cache entry; increase it when the computation changes, so that older entries are not used
_PROBE = "Probe: 2 naïve CATS &amp; a dog's tail,  кошка"  # whose tokens differ between tokenizers


class TextEmbedder:
    """Callable that averages the prompt embeddings of words, and caches the results.

    The key of an entry has a digest of the text tower: weights, architecture (CLIPs with equal weights may differ in
    their activation) and tokens. The digest is computed again when a weight has been moved or written in place, as
    PyTorch's version counters show; they do not count writes through ``parameter.data``. The key also has the prompt
    templates. Calls are thread-safe.

    Args:
        clip_model: open_clip's model.
        tokenizer: see :func:`ovseg.clip.model.build_clip`.
        templates: each with one ``{}`` for the word.
        autocast: returns the autocast context of the tower for a device type ("cpu", "cuda").
        precision: name of that context, part of the key.
        truncate: cut prompts that are too long instead of refusing them.
        cache_dir: folder of the cache on disk; None for memory only.
        learner: learned prompts, in place of ``templates``. Their tensors are part of the digest; while they train,
            results are neither cached nor detached.
        separator: words are split here, and the prompts of all parts averaged (ZegFormer: ", "); "" for whole words.
    """

    def __init__(
        self,
        clip_model: nn.Module,
        tokenizer: Callable[[list[str]], Tensor],
        templates: Sequence[str],
        *,
        autocast: Callable[[str], Any],
        precision: str = "fp32",
        truncate: bool = False,
        cache_dir: Path | None = None,
        learner: PromptLearner | None = None,
        separator: str = "",
    ):
        self.learner = learner
        self.clip_model = clip_model
        self.tokenizer = tokenizer
        self.templates = tuple(templates)
        self.autocast = autocast
        self.precision = precision
        self.truncate = truncate
        self.separator = separator
        self.cache = TextCache(cache_dir) if cache_dir else None
        self._lock = _Lock()
        self._memory: OrderedDict[tuple[str, str], Tensor] = OrderedDict()
        self._state: list[tuple[int, int | None]] | None = None
        self._fingerprint = b""
        self._keys: dict[tuple[str, ...], str] = {}
        # owners of the text tower's parameters: collecting them costs more than reading their version counters
        self._places = [
            (module, name)
            for path, module in clip_model.named_modules()
            if not f"{path}.".startswith("visual.")
            for name, _ in module.named_parameters(recurse=False)
        ]

    def __call__(self, words: Sequence[str], templates: Sequence[str] | None = None) -> Tensor:
        """Return the embeddings of words.

        Args:
            words: K texts, used verbatim; repeated ones are encoded once.
            templates: prompt templates; None for those of the embedder, or its learned prompts.

        Returns:
            float32 (K, D) unit vectors on the model's device.

        Raises:
            OvsegError: a prompt is longer than the text tower's context and ``truncate`` is off.
        """
        templates = self._own_templates if templates is None else tuple(templates)
        if self.learner is not None and not templates and torch.is_grad_enabled() and self.learner.trains:
            return self._encode_learned(words)
        with self._lock:
            key = self._key(templates)
            missing = [word for word in dict.fromkeys(words) if (key, word) not in self._memory]
            for word, feature in self._find(key, missing, templates).items():
                self._memory[key, word] = feature
            features = torch.stack([self._recall(key, word) for word in words])
            while len(self._memory) > WORDS_IN_MEMORY:
                self._memory.popitem(last=False)
        return features

    def _find(self, key: str, words: Sequence[str], templates: tuple[str, ...]) -> dict[str, Tensor]:
        """Return embeddings of words that are not in memory: read from disk, or computed."""
        device = next(self.clip_model.parameters()).device
        found = self.cache.read(key, words, embed_dim(self.clip_model)) if self.cache else {}
        found = {word: feature.to(device) for word, feature in found.items()}
        absent = [word for word in words if word not in found]
        if absent:
            encoded = dict(zip(absent, self._encode(absent, templates), strict=True))
            if self.cache:
                self.cache.write(key, encoded)
            found |= encoded
        return found

    def _recall(self, key: str, word: str) -> Tensor:
        self._memory.move_to_end((key, word))
        return self._memory[key, word]

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """Return token ids, int64 (n, context_length), padded with zeros.

        Raises:
            OvsegError: a prompt is too long, and ``truncate`` is off.
        """
        tokens = self.tokenizer(list(prompts))
        if not self.truncate and hasattr(self.tokenizer, "encode"):
            room = tokens.shape[1] - getattr(self.tokenizer, "marks", 2)  # for the start and end marks
            for prompt in prompts:
                if len(prompt) > room and (length := len(self.tokenizer.encode(prompt))) > room:
                    raise OvsegError(
                        f"the prompt {prompt[:60]!r}... has {length} tokens, CLIP reads {room}: shorten the word, "
                        f"or set {argument('truncate')} to True"
                    )
        return tokens

    @property
    def _own_templates(self) -> tuple[str, ...]:
        """Templates of calls that give none; empty for learned prompts."""
        return () if self.learner is not None else self.templates

    def _encode_learned(self, words: Sequence[str]) -> Tensor:
        """Return the embeddings of words in the learned prompts, float32 (K, D), with gradients of the vectors."""
        tokens = [self.tokenizer.encode(word) for word in words]
        room = self.learner.room
        for word, of_word in zip(words, tokens, strict=True):
            if len(of_word) > room and not self.truncate:
                raise OvsegError(
                    f"the word {word[:60]!r}... has {len(of_word)} tokens, the learned prompts leave room for {room}: "
                    f"shorten the word, or set {argument('truncate')} to True"
                )
        table = self.clip_model.token_embedding.weight
        features = []
        with self.autocast(table.device.type):
            for start in range(0, len(tokens), PROMPTS_AT_A_TIME):
                cut = [of_word[:room] for of_word in tokens[start : start + PROMPTS_AT_A_TIME]]
                features.append(run_text_tower(self.clip_model, *self.learner(table, cut)).float())
        together = torch.cat(features)
        return together / together.norm(dim=-1, keepdim=True)

    # inference_mode(False): a cached tensor made under inference mode could not be used in training later
    @torch.inference_mode(False)
    @torch.no_grad()
    def _encode(self, words: Sequence[str], templates: tuple[str, ...]) -> Tensor:
        if not templates:
            return self._encode_learned(words)
        parts = [word.split(self.separator) if self.separator else [word] for word in words]
        prompts = [template.format(part) for of_word in parts for part in of_word for template in templates]
        tokens = self.tokenize(prompts)
        device = next(self.clip_model.parameters()).device
        features = []
        with self.autocast(device.type):
            for chunk in tokens.split(PROMPTS_AT_A_TIME):
                features.append(encode_text(self.clip_model, chunk.to(device), _longest(chunk)).float())
        features = torch.cat(features).unflatten(0, (-1, len(templates)))  # (parts, T, D)
        mean = (features / features.norm(dim=-1, keepdim=True)).mean(dim=1)
        if len(mean) > len(words):
            mean = torch.stack([of_word.mean(dim=0) for of_word in mean.split([*map(len, parts)])])  # (K, D)
        return mean / mean.norm(dim=-1, keepdim=True)

    def _key(self, templates: tuple[str, ...]) -> str:
        """Return the digest of everything that an embedding depends on except the word."""
        parameters = [owner._parameters[name] for owner, name in self._places]
        parameters += self.learner.state_dict().values() if self.learner is not None else ()
        state = [(p.data_ptr(), None if p.is_inference() else p._version) for p in parameters]
        if state == self._state and templates in self._keys:
            return self._keys[templates]
        if state != self._state:
            self._keys.clear()
            digest = hashlib.sha256(repr((_FORMAT, self._architecture())).encode())
            for parameter in parameters:
                digest.update(parameter.detach().cpu().contiguous().numpy().tobytes())
            self._state, self._fingerprint = state, digest.digest()
        settings = json.dumps([templates, self.precision, self.truncate, *filter(None, [self.separator])])
        self._keys[templates] = hashlib.sha256(self._fingerprint + settings.encode("ascii")).hexdigest()
        return self._keys[templates]

    def _architecture(self) -> list:
        """Return types and options of the layers (heads, pooling), and the tokens of a text, for the digest."""
        layers = [
            (name, type(module).__name__, sorted(_options(module).items()))
            for name, module in self.clip_model.named_modules()
            if not f"{name}.".startswith("visual.")
        ]
        return [layers, self.tokenizer([_PROBE]).tolist()]


def encode_text(clip_model: nn.Module, tokens: Tensor, length: int) -> Tensor:
    """Compute open_clip's ``encode_text`` without the padding after the longest prompt, which the attention ignores.

    Args:
        tokens: int64 (n, context_length).
        length: number of tokens of the longest prompt, with marks.

    Returns:
        (n, D) features, not normalised.
    """
    causal = isinstance(clip_model, CLIP) and clip_model.text_pool_type == "argmax" and clip_model.attn_mask is not None
    if isinstance(text := getattr(clip_model, "text", None), HFTextEncoder) and text.config.pad_token_id is not None:
        used = (tokens != text.config.pad_token_id).any(0).nonzero()
        return clip_model.encode_text(tokens[:, : int(used.max()) + 1])
    if not causal:
        return clip_model.encode_text(tokens)
    return run_text_tower(clip_model, clip_model.token_embedding(tokens[:, :length]), tokens.argmax(dim=1))


def run_text_tower(clip_model: CLIP, embeddings: Tensor, ends: Tensor) -> Tensor:
    """Run open_clip's causal text tower from token embeddings.

    Args:
        embeddings: (n, L, width), without positions.
        ends: places of the end marks, int64 (n,), where the features are read.

    Returns:
        (n, D) features, not normalised.
    """
    length = embeddings.shape[1]
    x = embeddings + clip_model.positional_embedding[:length]
    x = clip_model.transformer(x, attn_mask=clip_model.attn_mask[:length, :length])
    ends = x[torch.arange(len(x), device=x.device), ends]
    projection = clip_model.text_projection
    ends = clip_model.ln_final(ends)
    return projection(ends) if isinstance(projection, nn.Linear) else ends @ projection


def embed_dim(clip_model: nn.Module) -> int:
    """Return the dimension of the joint space of an open_clip model."""
    if hasattr(clip_model, "text"):
        return clip_model.text.output_dim
    projection = clip_model.text_projection
    return projection.out_features if isinstance(projection, nn.Linear) else projection.shape[1]


def _longest(tokens: Tensor) -> int:
    """Return the length of the longest of some prompts; the end mark has the largest token id."""
    return int(tokens.argmax(dim=1).max()) + 1


def _options(module: nn.Module) -> dict[str, Any]:
    changing = ("training", "grad_checkpointing", "output_dict")
    public = {name: value for name, value in vars(module).items() if name[0] != "_" and name not in changing}
    return {name: value for name, value in public.items() if isinstance(value, (bool, int, float, str))}


class TextCache:
    """Cache of embeddings on disk, which several threads and processes may use at once.

    An entry has the embedding, its key, its word and a checksum; damaged entries and entries of other words are
    computed and written again. A folder that cannot be read or written gives one warning; results do not change.

    Args:
        folder: of the entries; created for the first one.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._warned: set[str] = set()

    def read(self, key: str, words: Sequence[str], width: int) -> dict[str, Tensor]:
        """Return the stored embeddings by word, float32 (width,) unit vectors.

        Args:
            key: digest of all that an embedding depends on except the word.
        """
        found = {}
        for word in words:
            path = self._path(key, word)
            try:
                found[word] = _read_entry(path, key, word, width)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except (SafetensorError, ValueError) as error:
                self._warn("damaged", "computing a damaged text embedding of the cache again: %s (%s)", path, error)
            except OSError as error:
                self._warn("unread", "cannot read the cache of text embeddings %s: %s", self.folder, error)
        return found

    def write(self, key: str, features: Mapping[str, Tensor]) -> None:
        """Store embeddings, float32 (width,), by word."""
        try:
            for word, feature in features.items():
                feature = feature.cpu().contiguous().clone()
                about = {"key": key, "word": json.dumps(word), "sha256": _checksum(key, word, feature)}
                with atomic_path(self._path(key, word)) as temporary:
                    save_file({"feature": feature}, temporary, about)
        except (OvsegError, OSError, SafetensorError) as error:
            self._warn("unwritten", "text embeddings that cannot be stored are kept in memory only: %s", error)

    def _path(self, key: str, word: str) -> Path:
        name = hashlib.sha256(word.encode("utf-8", "surrogatepass")).hexdigest()
        return self.folder / key[:32] / f"{name[:32]}.safetensors"

    def _warn(self, kind: str, message: str, *values: object) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            logger.warning(message, *values)


def _read_entry(path: Path, key: str, word: str, width: int) -> Tensor:
    """Return the embedding of an entry.

    Raises:
        ValueError: the entry is damaged or of another word.
    """
    with safe_open(path, framework="pt") as file:
        about = file.metadata() or {}
        if about.get("key") != key or about.get("word") != json.dumps(word):
            raise ValueError("it is of another word or model, or of an older format")
        if list(file.keys()) != ["feature"]:
            raise ValueError("it holds other tensors")
        feature = file.get_tensor("feature")
    if feature.dtype != torch.float32 or feature.shape != (width,):
        raise ValueError(f"it is {feature.dtype} of shape {list(feature.shape)}")
    if about.get("sha256") != _checksum(key, word, feature):
        raise ValueError("its checksum is wrong")
    if not abs(float(feature.norm()) - 1) < _NORM_TOLERANCE:
        raise ValueError("it is not a unit vector")
    return feature


def _checksum(key: str, word: str, feature: Tensor) -> str:
    return hashlib.sha256(f"{key} {json.dumps(word)} ".encode("ascii") + feature.numpy().tobytes()).hexdigest()


class _Lock:
    """Re-entrant lock whose copies, also in other processes, are new, unlocked locks."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple:
        return type(self), ()
