#!/usr/bin/env python3
"""Extract the words of the captions that OpenSeg is trained on, once, so that training needs no tagger.

python tools/extract_caption_words.py --config-file configs/openseg_R101_coco.yaml --output words.jsonl --workers 8
python train_net.py --config-file configs/openseg_R101_coco.yaml INPUT.CAPTION.WORD_FILE words.jsonl

# another tagger: give it to both commands
python tools/extract_caption_words.py --config-file configs/openseg_R101_coco.yaml --output words.jsonl \\
    INPUT.CAPTION.TAGGER spacy:en_core_web_sm

Captions are those of DATASETS.TRAIN, settings those of INPUT.CAPTION. The file appears when it is complete; parts of it
are kept in a hidden folder next to it until then, and an interrupted run continues from them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import ovseg
from ovseg.cli.options import parse_with_options
from ovseg.config.files import check_file
from ovseg.errors import OvsegError, user_errors


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help="configuration of the training")
    parser.add_argument("--output", type=Path, required=True, help="the word file, .jsonl")
    parser.add_argument("--workers", type=int, default=1, help="processes (default %(default)s)")
    parser.add_argument("--opts", nargs="*", metavar="KEY VALUE", help="configuration keys")
    with user_errors():
        args = parse_with_options(parser, argv, bare=True)
        check_file(args.config_file)
        if args.workers < 1:
            raise OvsegError(f"--workers is {args.workers}: give 1 or more")
        ovseg.register()
        from ovseg.config import load_cfg
        from ovseg.data.word_extraction import extract_words

        count, tagger = extract_words(load_cfg(args.config_file, args.opts), args.output, args.workers)
        print(f"{args.output}: the words of {count:,} captions, by the tagger {tagger}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
