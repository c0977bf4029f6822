"""Words: what a user asks for, the label sets of known data sets, the prompts around a word. Knows no tensors."""

from ovseg.vocabulary.label_set import LabelSet, label_set, label_set_names
from ovseg.vocabulary.templates import get_templates
from ovseg.vocabulary.vocabulary import VARIANTS, Vocabulary

__all__ = ["VARIANTS", "LabelSet", "Vocabulary", "get_templates", "label_set", "label_set_names"]
