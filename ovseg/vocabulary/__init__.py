"""Words to segment: vocabularies, label sets of known data sets, prompt templates, nouns of captions; no tensors."""

from ovseg.vocabulary.label_set import LabelSet, label_set, label_set_names
from ovseg.vocabulary.templates import get_templates
from ovseg.vocabulary.vocabulary import VARIANTS, Vocabulary

__all__ = ["VARIANTS", "LabelSet", "Vocabulary", "get_templates", "label_set", "label_set_names"]
