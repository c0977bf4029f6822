"""What is fuzzed: one class for each kind of input."""

from tests.fuzz.harness import Target
from tests.fuzz.targets import archives, captions, checkpoints, evaluation, images, model, own, pickles, settings, words

ALL: tuple[type[Target], ...] = (
    *(images.Images, own.Labels, own.OwnYaml, own.Coco, own.Labelme, words.Words, words.Paths),
    *(settings.Settings, settings.Models, checkpoints.Checkpoints, checkpoints.ClipFiles, pickles.Pickles),
    *(evaluation.Results, evaluation.Partials, captions.Captions, captions.Pairs, archives.Archives),
    *(model.Arrays, model.TextCache),
)
BY_NAME = {target.name: target for target in ALL}
