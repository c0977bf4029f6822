"""The tokenizer of a CLIP: open_clip's own, or Hugging Face's for text towers that were trained with it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

from ovseg.errors import OvsegError, argument, shown

# packages that tokenizers and towers of open_clip's models need: name -> module
_PACKAGES = {name: name for name in ("sentencepiece", "tiktoken", "tokenizers", "timm", "transformers")}


class _HuggingFaceTokenizer(HFTokenizer):
    """Tokenizer of Hugging Face with what :meth:`ovseg.clip.text.TextEmbedder.tokenize` needs to measure prompts."""

    @property
    def marks(self) -> int:
        """Number of start and end marks of a prompt."""
        return self.tokenizer.num_special_tokens_to_add()

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text, without marks."""
        return self.tokenizer(self.clean_fn(text), add_special_tokens=False).input_ids


def build_tokenizer(name: str, text: Mapping[str, Any]) -> SimpleTokenizer | HFTokenizer:
    """Build the tokenizer that open_clip's text configuration names.

    Args:
        name: of the CLIP, for messages.
        text: ``text_cfg``.

    Raises:
        OvsegError: a package is missing, the files cannot be read or downloaded, or the vocabulary has another size.
    """
    length, options = text.get("context_length", 77), text.get("tokenizer_kwargs") or {}
    for key in ("context_length", "vocab_size"):
        if not isinstance(text.get(key, 1), int):
            raise OvsegError(f"CLIP {name}: {key} of its text_cfg is {shown(text[key])}: give a whole number")
    wanted = text.get("hf_tokenizer_name")
    if not wanted:
        tokenizer = SimpleTokenizer(context_length=length, **options)
        if text.get("vocab_size", tokenizer.vocab_size) < tokenizer.vocab_size:
            raise OvsegError(
                f"CLIP {name} has a vocabulary of {text['vocab_size']} tokens, CLIP's tokenizer has "
                f"{tokenizer.vocab_size}: name the model's own tokenizer as text_cfg.hf_tokenizer_name in its JSON"
            )
        return tokenizer
    try:
        return _HuggingFaceTokenizer(
            wanted, context_length=length, tokenizer_mode=text.get("tokenizer_mode"), **options
        )
    except Exception as error:  # any type, by the tokenizer or the hub's client
        if package := missing_package(error):
            raise lacks_package(name, f"tokenizer {wanted}", package) from error
        raise OvsegError(
            f"cannot get the tokenizer {wanted} of CLIP {name} ({first_line(error)}): copy the model's repository "
            "here from a machine with network and set "
            f"{argument('name')} to local-dir:FOLDER, or "
            "choose a CLIP with CLIP's own tokenizer, such as ViT-L-14"
        ) from error


def lacks_package(name: str, part: str, package: str) -> OvsegError:
    """Return the error for a part of a CLIP that needs a package which is not installed."""
    return OvsegError(
        f"the {part} of CLIP {name} needs the package {package}, which is not installed: `pip install {package}`, or "
        "choose a CLIP that needs none, such as ViT-L-14"
    )


def missing_package(error: BaseException | None) -> str | None:
    """Return the missing package that an error, or its cause, names; None if it names none."""
    if error is None:
        return None
    if isinstance(error, ModuleNotFoundError) and error.name:
        return error.name.partition(".")[0]
    text = str(error).lower()
    named = (package for package, module in _PACKAGES.items() if package in text and find_spec(module) is None)
    return next(named, None) or missing_package(error.__cause__ or error.__context__)


def first_line(error: BaseException) -> str:
    """Return the first line of an error, at most 200 characters; its type if it is empty."""
    return (str(error).strip() or type(error).__name__).split("\n")[0][:200]
