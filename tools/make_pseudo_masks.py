#!/usr/bin/env python3
"""Make pseudo-masks: a teacher's confident proposals, as training masks of images that have none.

# a folder of photographs; run the same command again after an interruption, finished shards are kept
python tools/make_pseudo_masks.py --data photos --config-file CONFIG --weights TEACHER --output pseudo
# the images that a file of captions names, by 8 processes
torchrun --nproc-per-node 8 tools/make_pseudo_masks.py --data open_images_train_captions.jsonl --image-root train \\
    --config-file CONFIG --weights TEACHER --output pseudo
# the same by 16 workers of Ray, on the machines of a cluster: docs/many_machines.md
python tools/make_pseudo_masks.py --ray auto --ray-workers 16 --data ... --output pseudo
# the toy world's scenes without labels
python tools/make_pseudo_masks.py --data toy:captions --config-file configs/toy/openseg_toy.yaml --output output/pseudo

The output folder gets masks-00000.json, ... (COCO RLE; "score" is the confidence), lists of unusable images
(bad_*.txt), and finally summary.json. Training reads it by DATASETS.PSEUDO_MASKS.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence

import ovseg
from ovseg.adaptation.pseudo_options import PseudoOptions, check_options
from ovseg.cli.options import parse_with_options
from ovseg.cli.shards import add_images, add_output, launch_here, values_of
from ovseg.errors import user_errors


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_images(
        parser,
        "images",
        nargs="+",
        help="folder, images or patterns ('train/**/*.jpg'); a list of image files, one a line (.txt, .lst); a file of "
        "captions (.json, .jsonl, .csv, .tsv), of which the images are used; or the split of a world (toy:captions)",
    )

    add = parser.add_argument_group("teacher").add_argument
    add("--config-file", required=True, help="configuration of a system with a proposer")
    add("--weights", help="its checkpoint; default: MODEL.WEIGHTS of the configuration")
    add("--opts", nargs="*", metavar="KEY VALUE", help="configuration keys")

    add = parser.add_argument_group("masks").add_argument
    add(
        "--threshold",
        type=float,
        default=0.5,
        help="least probability of a pixel of a mask (default %(default)s)",
    )
    add("--min-area", type=float, default=0.001, help="least share of the image of a mask (default %(default)s)")
    add(
        "--min-confidence",
        type=float,
        default=0.75,
        help="least mean probability of the pixels of a mask (default %(default)s)",
    )
    add(
        "--max-iou",
        type=float,
        default=0.8,
        help="a mask with a larger IoU with a more confident one is left out (default %(default)s)",
    )
    add("--max-masks", type=int, default=64, help="masks of an image, the most confident ones (default %(default)s)")
    add(
        "--max-size",
        type=int,
        default=1024,
        help="masks of larger images are selected at this size, longer side in pixels (default %(default)s)",
    )

    add_output(parser)
    return parse_with_options(parser, argv)


def main(argv: Sequence[str] | None = None) -> None:
    options = PseudoOptions(**values_of(parse(argv)))
    check_options(options)
    ovseg.register()  # imports slowly: after the arguments are checked
    from ovseg.adaptation.pseudo_masks import run

    launch_here(run, options)


if __name__ == "__main__":
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.INFO)
    with user_errors():
        main()
