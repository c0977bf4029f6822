#!/usr/bin/env python3
"""Prepare image-text pairs such as CC12M for OVSegmentor: keep captions with entities, and pair images that share one.

python data_process_cc12m.py --mode filter --srcdir cc12m.csv --processors 32
python data_process_cc12m.py --mode merge --dstdir subsets --remove_subfiles True
python data_process_cc12m.py --mode makepair --metafile subsets/cc12m_filtered_subset.csv
python data_process_cc12m.py --mode shard --metafile cc12m_filtered_subset_pair.csv --imgdir images --dstdir shards
python data_process_cc12m.py --mode json2csv --srcdir captions.jsonl

filter    reads a table of image_id and caption, and writes subsets/cc12m_<number>.csv next to it, a file for each
          processor, with the column entity
merge     joins them to cc12m_filtered_subset.csv in the same folder
makepair  writes <metafile>_pair.csv with ten pairs for each row, the columns pairindex and pairentity
shard     writes WebDataset shards of images and captions, of 10,000 rows each
json2csv  writes a table of JSON lines

Interrupted runs of filter and shard continue: finished files are kept. Files appear whole or not at all.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from ovseg.errors import user_errors

NEEDED = {
    "filter": ("srcdir",),
    "merge": ("dstdir",),
    "makepair": ("metafile",),
    "shard": ("metafile", "imgdir", "dstdir"),
    "json2csv": ("srcdir",),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", required=True, choices=list(NEEDED))
    parser.add_argument("--srcdir", type=Path, metavar="FILE", help="the table, or the JSON lines (a file)")
    parser.add_argument("--dstdir", type=Path, metavar="DIR", help="folder of the results")
    parser.add_argument("--metafile", type=Path, metavar="FILE", help="table with the column entity")
    parser.add_argument("--imgdir", type=Path, metavar="DIR", help="of shard: folder of the images")
    parser.add_argument("--processors", type=_count, default=1, metavar="N", help="processes (default: %(default)s)")
    parser.add_argument(
        "--remove_subfiles",
        type=_truth,
        default=False,
        metavar="BOOL",
        help="of merge: delete the parts afterwards, True or False",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the pairs (default: %(default)s)")
    args = parser.parse_args(argv)
    for name in NEEDED[args.mode]:
        if getattr(args, name) is None:
            parser.error(f"--mode {args.mode} needs --{name}")
    from ovseg.data import cc12m  # after mistakes are answered

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.mode == "filter":
        cc12m.filter_captions(args.srcdir, args.dstdir, args.processors)
    elif args.mode == "merge":
        cc12m.merge_parts(args.dstdir, args.remove_subfiles)
    elif args.mode == "makepair":
        cc12m.make_pairs(args.metafile, args.seed)
    elif args.mode == "shard":
        cc12m.make_shards(args.metafile, args.imgdir, args.dstdir, args.processors)
    else:
        print(cc12m.json_to_csv(args.srcdir, args.dstdir))
    return 0


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of processes: give 1 or more")
    return int(text)


def _truth(text: str) -> bool:
    if (lower := text.lower()) not in ("true", "false", "1", "0"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False: give one of them")
    return lower in ("true", "1")


if __name__ == "__main__":
    with user_errors():
        sys.exit(main())
