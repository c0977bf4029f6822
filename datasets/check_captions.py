#!/usr/bin/env python3
"""Check caption files: every line is read, and every image must be there. Exit status 1 if anything is wrong.

python datasets/check_captions.py coco/annotations/captions_val2017.json
python datasets/check_captions.py coco_val_localized_narratives.jsonl --image-root coco/val2017
python datasets/check_captions.py Train_GCC-training.tsv cc12m.tsv
python datasets/check_captions.py Train_GCC-training_output.csv --image-root cc3m_parent
python datasets/check_captions.py cc12m_filtered_subset_pair.csv --image-root cc12m/images

Supports COCO Captions (.json), Localized Narratives (.jsonl, full or captions only), the lists of CC3M and CC12M (.tsv
without a header), tables with a header as Open-CLIP's and OVSeg's (tabs) and OVSegmentor's (commas). None of them needs
to be converted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ovseg.errors import user_errors


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--image-root", type=Path, help="folder that image names start from")
    parser.add_argument("--no-images", action="store_true", help="do not look for the images")
    parser.add_argument("--partial", action="store_true", help="a part of the released file is enough")
    parser.add_argument("--show", type=int, default=20, help="faults of a file that are shown (default: %(default)s)")
    args = parser.parse_args(argv)
    from ovseg.data.caption_checks import check_captions  # takes a second to import

    wrong = False
    for path in args.files:
        check = check_captions(path, args.image_root, need_images=not args.no_images)
        images = "" if check.images is None else f" of {check.images:,} images"
        other_number = check.released is not None and check.captions != check.released
        state = f"WRONG, {len(check.faults):,} faults" if check.faults else "right"
        if other_number:
            state += f", but the released file has {check.released:,} captions"
        wrong |= bool(check.faults) or (other_number and not args.partial)
        print(f"{path}: {check.kind}, {check.captions:,} captions{images}: {state}")
        for fault in check.faults[: args.show]:
            print(f"  {fault}")
        if len(check.faults) > args.show:
            print(f"  ... and {len(check.faults) - args.show:,} more")
    return int(wrong)


if __name__ == "__main__":
    with user_errors():
        sys.exit(main())
