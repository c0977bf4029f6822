#!/usr/bin/env python3
"""Mine mask-text pairs: CLIP assigns the nouns of captions to the masks of a segmenter.

# your own photographs, with a table that has the columns "filepath" and "caption"
python tools/mine_mask_text_pairs.py --data photos/captions.csv --config-file CONFIG --weights MODEL --output pairs
# COCO, 8 processes; run the same command again after an interruption, finished shards are kept
torchrun --nproc-per-node 8 tools/mine_mask_text_pairs.py --data captions_train2017.json --image-root train2017 \\
    --config-file CONFIG --weights MODEL --architecture ViT-L/14 --clip openai --seen coco_stuff_171 --output pairs
# the same by 16 workers of Ray, on the machines of a cluster: docs/many_machines.md
python tools/mine_mask_text_pairs.py --ray auto --ray-workers 16 --data ... --output pairs
# the toy world: its segmenter's masks, or ground truth with class names
python tools/mine_mask_text_pairs.py --data toy:train --config-file configs/toy/ovseg_toy.yaml --nouns phrase \\
    --output output/pairs
python tools/mine_mask_text_pairs.py --data toy:train --masks ground-truth --names-from labels --output output/labels

The output folder gets pairs-00000.tar, ... (WebDataset: KEY.png, the crop; KEY.mask.png; KEY.json), contact_sheet.png,
lists of unusable captions and images (bad_*.txt), and finally summary.json.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence

import ovseg
from ovseg.adaptation.mining_options import MASK_KINDS, MiningOptions, check_options
from ovseg.cli.options import parse_with_options
from ovseg.cli.shards import add_images, add_output, launch_here, values_of
from ovseg.errors import user_errors

FORMS = ("noun", "phrase", "both")  # of ovseg.vocabulary.nouns, which imports slowly


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_images(
        parser,
        "images and captions",
        help="COCO captions (.json), Localized Narratives (.jsonl), a table (.csv, .tsv), toy:train or toy:val; "
        "with --names-from labels also a folder of images",
    )

    add = parser.add_argument_group("masks: of a segmenter, or from --masks").add_argument
    add("--config-file", help="configuration of a trained segmenter")
    add("--weights", help="its checkpoint; default: MODEL.WEIGHTS of the configuration")
    add("--masks", metavar="FOLDER", help="folder of masks, or ground-truth with --data toy:...")
    add(
        "--masks-are",
        choices=MASK_KINDS,
        help="one label map for each image, or one instance map (0: no mask), or a folder of mask files; "
        "default: detected",
    )
    add("--label-names", metavar="WORDS", help="names of the values of label maps: a label set or a file")
    add("--ignore-label", type=int, default=255, help="value of label maps without a mask (default %(default)s)")
    add("--min-area", type=float, default=0.0005, help="least share of the image of a mask (default %(default)s)")
    add("--max-size", type=int, default=1024, help="larger images are shrunk first (default %(default)s pixels)")

    add = parser.add_argument_group("texts").add_argument
    add("--names-from", choices=("captions", "labels"), default="captions", help="labels: the masks' own class names")
    add("--captions", choices=("one", "all"), default="one", help="the first caption of each image, or all")
    add(
        "--nouns",
        choices=FORMS,
        default="noun",
        help="noun: star; phrase: striped red star; both of them (default %(default)s, as in the paper)",
    )
    add("--tagger", default="textblob", help="textblob, or spacy:MODEL if installed (default %(default)s)")
    add("--vocabulary", metavar="WORDS", help="only these words, found within phrases: toy, a label set, or a file")
    add(
        "--seen", metavar="WORDS", help="words of the seen classes, to count their share: toy_base, a label set, a file"
    )

    add = parser.add_argument_group("CLIP that assigns nouns to masks; default: the segmenter's").add_argument
    add("--architecture", help="open_clip name (ViT-L/14) or JSON file")
    add("--clip", help="its weights: file or open_clip tag (openai)")
    add("--templates", default="vild", help="prompts around the nouns: vild, imagenet, predefined")
    add("--min-score", type=float, help="least cosine of a noun and its best mask; default: no limit, as in the paper")

    add = add_output(parser)
    add("--write-list", action="store_true", help="the original's pairs.tsv and filled crops, too")
    add("--opts", nargs="*", metavar="KEY VALUE", help="configuration keys")
    return parse_with_options(parser, argv)


def main(argv: Sequence[str] | None = None) -> None:
    options = MiningOptions(**values_of(parse(argv)))
    check_options(options)
    ovseg.register()  # imports slowly: after the arguments are checked
    from ovseg.adaptation.mining_run import run

    launch_here(run, options)


if __name__ == "__main__":
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.INFO)
    with user_errors():
        main()
