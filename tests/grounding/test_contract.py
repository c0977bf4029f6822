"""Functions that other programs call by these names, with these arguments (specification of OpenSeg, section 13)."""

from importlib import import_module
from inspect import signature

import pytest

FUNCTIONS = {
    "ovseg.proposals.class_agnostic.dice": "masks, labels, valid=None, form='vnet'",
    "ovseg.proposals.class_agnostic.best_match_dice_loss": "mask_logits, labels, valid=None, form='vnet'",
    "ovseg.proposals.pooling.pool_regions": "masks, features, mean=False",
    "ovseg.proposals.pseudo_labels.pseudo_masks": (
        "mask_logits, valid=None, threshold=0.5, min_area=0.001, min_confidence=0.75, max_iou=0.8, max_masks=64"
    ),
    "ovseg.grounding.region_word_cosine": "regions, words",
    "ovseg.grounding.best_word": "scores, categories, num_categories",
    "ovseg.grounding.image_caption_similarity": "regions, words, num_words, tau",
    "ovseg.grounding.grounding_loss": "similarity, tau, usable=None",
    "ovseg.grounding.grounded_words": "tagged, kind='noun+adj'",
    "ovseg.grounding.drop_words": "words, keep_prob, rng",
    "ovseg.meta_arch.painting.paint_scores": "weights, maps, size, class_chunk",
    "ovseg.evaluation.grounding.present_only": "scores, labels, ignore_label",
    "ovseg.evaluation.proposals.best_ious": "proposals, labels, ignore=None",
    "ovseg.evaluation.proposals.recall_at": "best_ious, thresholds",
    "ovseg.evaluation.background.fold_background": "labels, num_foreground",
    "ovseg.evaluation.confusion.confusion_matrix": "pred, gt, num_classes, ignore_label",
    "ovseg.evaluation.confusion.scores_from_confusion": "conf, class_names",
    "ovseg.evaluation.oracle.name_by_overlap": "masks, truth, num_classes, how='iou'",
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_is_there(name):
    module, _, function = name.rpartition(".")
    parameters = list(signature(getattr(import_module(module), function)).parameters.values())
    wanted = [argument.partition("=") for argument in FUNCTIONS[name].split(", ")]
    for parameter, (argument, given, default) in zip(parameters, wanted, strict=False):
        assert parameter.name == argument
        assert not given or repr(parameter.default) == default
    further = parameters[len(wanted) :]
    assert len(parameters) >= len(wanted)
    assert all(p.default is not p.empty or p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in further)
