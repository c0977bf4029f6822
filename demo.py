#!/usr/bin/env python
"""Segment pictures and films into the words you give.

python demo.py --class-names grass "red star" --input scene.png
python demo.py --config-file configs/ovseg_swinB_vitL_demo.yaml --class-names Oculus Ukulele \\
    --input a.jpg b.jpg --output ./pred --opts MODEL.WEIGHTS ovseg_swinbase_vitL14_ft_mpt.pth
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from ovseg.cli.options import parse_with_options
from ovseg.errors import CannotWrite, OvsegError, explain_system_error, user_errors
from ovseg.io.files import check_writable
from ovseg.io.inputs import choose_outputs, find_inputs, is_video
from ovseg.io.progress import progress_bar
from ovseg.result.segmentation import Segmentation, output_files
from ovseg.vocabulary import Vocabulary, label_set_names

logger = logging.getLogger("ovseg.demo")

ROOT = Path(__file__).resolve().parent
TOY_CONFIG = ROOT / "configs" / "toy" / "ovseg_toy.yaml"
TOY_FILES = {  # its own paths hold in the project's folder only
    "MODEL.WEIGHTS": ROOT / "weights" / "toy" / "ovseg.safetensors",
    "MODEL.CLIP_ADAPTER.CLIP_WEIGHTS": ROOT / "weights" / "toy" / "clip.safetensors",
    "MODEL.CLIP_ADAPTER.CLIP_MODEL_NAME": ROOT / "configs" / "toy" / "clip.json",
}
DEFAULT_OUTPUT = "predictions"
WORDS_IN_A_LINE = 5


def build_parser() -> argparse.ArgumentParser:
    """The command line; its first five options are the original's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config-file",
        default=str(TOY_CONFIG),
        help="the model (default: the toy model that comes with ovseg; it knows toy scenes only)",
    )
    words = parser.add_mutually_exclusive_group(required=True)
    words.add_argument(
        "--class-names",
        nargs="+",
        metavar="WORD",
        help="words to look for; quote those with blanks. Or one text with synonyms: 'person, child; dog'",
    )
    words.add_argument("--vocabulary", metavar="FILE", help="words, one per line: name, or name: synonym, synonym")
    words.add_argument("--label-set", metavar="NAME", help=f"words of a data set: {', '.join(label_set_names())}")
    parser.add_argument(
        "--background",
        nargs="+",
        metavar="WORD",
        default=[],
        help="words for all the rest, such as 'other, background': what they get is unlabelled; without them every "
        "pixel gets one of the words looked for",
    )
    parser.add_argument(
        "--input", nargs="+", required=True, help="pictures, films, folders, or patterns such as 'photos/**/*.jpg'"
    )
    parser.add_argument(
        "--output",
        default=DEFAULT_OUTPUT,
        help="folder, or for one input a file; existing results are replaced (default: %(default)s)",
    )
    parser.add_argument(
        "--skip-existing", action="store_true", help="leave out inputs that have results for the same words"
    )
    parser.add_argument(
        "--explain", action="store_true", help="also tell each mask's best words by each classifier (in the JSON, too)"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps, ... (default: MODEL.DEVICE, or cpu without a GPU)")
    parser.add_argument(
        "--opts", nargs="*", metavar="KEY VALUE", help="override configuration keys, as KEY VALUE or KEY=VALUE"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0, or 1 when an input failed. What the user must mend before anything can run exits with status 2.
    """
    args = parse_with_options(build_parser(), argv)
    console, errors = Console(soft_wrap=True, highlight=False), Console(stderr=True, soft_wrap=True, highlight=False)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    with user_errors():
        return _run(args, console, errors)


def _run(args: argparse.Namespace, console: Console, errors: Console) -> int:
    vocabulary = _read_words(args)
    files, failures = find_inputs(args.input)
    jobs = list(zip(files, choose_outputs(files, args.output, args.input), strict=True))
    if args.skip_existing:
        waiting = [job for job in jobs if not _is_done(*job, vocabulary, args.explain)]
        if len(waiting) < len(jobs):
            console.print(f"{len(jobs) - len(waiting)} of {len(jobs)} inputs have results already", markup=False)
        jobs = waiting
    done, stopped = 0, None
    if jobs:
        check_writable(jobs[0][1])
        segmenter = _load(args)
        if args.explain:
            segmenter.refuse_to_explain_views()
        segmenter.prepare(vocabulary)
        done, stopped = _segment_all(jobs, segmenter, vocabulary, args.explain, failures, console, errors)
        console.print(f"{done} of {done + len(failures)} done; results in {args.output}", markup=False)
    if failures:
        errors.print(f"{len(failures)} could not be segmented:", markup=False)
        for name, reason in failures:
            errors.print(f"  {name}: {reason}", markup=False)
    if stopped is not None:
        raise stopped
    return 1 if failures else 0


def _read_words(args: argparse.Namespace) -> Vocabulary:
    background = [word.strip() for text in args.background for word in re.split("[,;]", text.strip(" ,;"))]
    if background and not all(background):
        raise OvsegError(f"--background {args.background} has a blank word: write for example 'other, background'")
    if args.vocabulary:
        return Vocabulary.from_file(args.vocabulary).with_background(background)
    if args.label_set:
        return Vocabulary.from_label_set(args.label_set).with_background(background)
    words = args.class_names
    vocabulary = Vocabulary.of("; ".join(words) if any(";" in word for word in words) else words, "--class-names")
    for name in vocabulary.names:
        if "," in name:
            logger.warning("%r is looked for as one word; give several words separated by blanks", name)
    return vocabulary.with_background(background)


def _load(args: argparse.Namespace):
    from ovseg.segmenter import Segmenter  # takes seconds: only once words and inputs are known to be good

    opts = list(args.opts)
    if Path(args.config_file).resolve() == TOY_CONFIG:
        logger.warning("this is the toy model, which knows toy scenes only; for photographs give --config-file")
        opts = [text for key, file in TOY_FILES.items() for text in (key, str(file))] + opts
    return Segmenter.from_config(args.config_file, opts=opts, device=args.device)


def _segment_all(
    jobs: Sequence[tuple[Path, Path]],
    segmenter,
    vocabulary: Vocabulary,
    explain: bool,
    failures: list[tuple[str, str]],
    console: Console,
    errors: Console,
) -> tuple[int, CannotWrite | None]:
    """Segment every input; add what fails to ``failures``.

    Returns:
        How many went well, and the error that prevents writing any more results.
    """
    done = 0
    single = len(jobs) == 1 and not is_video(jobs[0][0])
    with progress_bar(console=errors, show=not single, transient=True) as progress:
        overall = progress.add_task("inputs", total=len(jobs))
        for source, target in jobs:
            try:
                if is_video(source):
                    _segment_video(segmenter, source, vocabulary, target, progress)
                    console.print(f"{source} -> {target}", markup=False)
                else:
                    result = segmenter(source, vocabulary, **({"explain": True} if explain else {}))
                    result.save(target)
                    _show(result, target, console, as_table=single)
                done += 1
            except CannotWrite as error:
                return done, error
            except OvsegError as error:
                failures.append((str(source), str(error)))
            except Exception as error:  # a defect of ours, but hours of other inputs must not be lost by it
                if (reason := explain_system_error(error)) is None:
                    logger.exception("unexpected error with %s", source)
                    reason = f"unexpected {type(error).__name__} (see above): please report it"
                failures.append((str(source), reason))
            progress.advance(overall)
    return done, None


def _segment_video(segmenter, source: Path, vocabulary: Vocabulary, target: Path, progress: Progress) -> None:
    from ovseg.result.video import segment_video

    task = progress.add_task(escape(f"frames of {source.name}"), total=None)
    try:
        segment_video(
            segmenter,
            source,
            vocabulary,
            target,
            on_frame=lambda count, total: progress.update(task, completed=count, total=total),
        )
    finally:
        progress.remove_task(task)


def _show(result: Segmentation, target: Path, console: Console, as_table: bool) -> None:
    if not as_table:
        shares = [f"{result.names[k]} {result.fractions[k]:.0%}" for k in result.found[:WORDS_IN_A_LINE]]
        more = len(result.found) - len(shares)
        words = ", ".join(shares) + (f" and {more} more" if more else "") or "nothing found"
        console.print(f"{result.source} -> {target}: {words}", markup=False)
        return
    table = Table("word", "share", "score")
    for k in result.found:
        table.add_row(Text(result.names[k]), f"{result.fractions[k]:.1%}", f"{result.scores[k]:.3f}")
    unlabelled = 1 - result.fractions.sum()
    if unlabelled > 0:
        table.add_row("(unlabelled)", f"{unlabelled:.1%}", "", style="dim")
    console.print(table)
    if result.mask_scores is not None:
        console.print(result.explain())
    console.print(f"{result.source} -> {', '.join(map(str, output_files(target)))}", markup=False)


def _is_done(source: Path, target: Path, vocabulary: Vocabulary, explain: bool) -> bool:
    """The JSON is written last, so it tells whether the results of this input and these words are complete."""
    json_file = output_files(target)[2]
    try:
        written = json.loads(json_file.read_text(encoding="utf-8"))
        image = written.get("image") or written.get("video")
        same = Path(image).resolve() == source.resolve() and written["names"] == list(vocabulary.foreground)
        same = same and written.get("background", []) == list(vocabulary.background)
        return same and (not explain or "explanation" in written or is_video(source))
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError):
        return False


if __name__ == "__main__":
    sys.exit(main())
