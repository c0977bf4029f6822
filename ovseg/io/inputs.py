"""Input and output files of command lines that process images and videos."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from ovseg.errors import OvsegError, argument, explain_system_error, reason_of, shown
from ovseg.io.files import shorten

IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .png .webp .bmp .gif .tif .tiff .ppm .pgm .pbm .pnm .jp2 .avif .tga".split()  # noqa: SIM905
)
VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv"})
OUTPUT_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_LONGEST_ENDING = len("-1000000_labels.png")  # appended to the input's name


def is_video(path: Path) -> bool:
    """Return whether the suffix of a path is that of a video."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def live_source(argument: str) -> int | str | None:
    """Return the index of a camera or the address of a stream that an input names; None for other inputs.

    A number is a camera unless there is a file of that name. Web addresses of images and video files are no streams.

    Raises:
        OvsegError: an address is not valid.
    """
    if argument.isascii() and argument.isdecimal() and not os.path.lexists(argument):
        return int(argument) if len(argument) < 5 else None
    scheme = re.match(r"(rtsps?|rtmps?|rtp|udp|tcp|srt|https?)://", argument, re.IGNORECASE)
    if scheme is None:
        return None
    try:
        path = urlsplit(argument).path
    except ValueError as error:
        raise OvsegError(f"{shown(argument)} is not a valid address ({error})") from error
    return None if Path(path).suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES else argument


def live_name(source: int | str) -> str:
    """Return the name of a camera or stream for messages and files: without password, path and query."""
    if isinstance(source, int):
        return f"camera {source}"
    return f"stream {urlsplit(source).hostname or source}"


def find_inputs(
    arguments: Sequence[str], left_out: Callable[[Path], bool] = lambda file: False
) -> tuple[list[Path], list[tuple[str, str]]]:
    """Expand files, folders (their images and videos, without subfolders) and glob patterns (also ``**``) to files.

    Args:
        arguments: of the command line.
        left_out: files for which this is true are left out.

    Returns:
        the files in order, each once, and a pair (argument, reason) for each argument without files.

    Raises:
        OvsegError: an argument is a URL.
    """
    files: dict[str, Path] = {}
    missing: list[tuple[str, str]] = []
    for given in arguments:
        if not given:
            raise OvsegError("an input is empty text: give files, folders or patterns")
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", given):
            raise OvsegError(f"{given} is a web address, and nothing is downloaded: save the file, then give its path")
        try:
            found, reason = _find(given)
        except (OSError, ValueError) as error:  # no permission, a name too long, a byte 0 in it
            found, reason = [], explain_system_error(error) or reason_of(error)
        if not found:
            missing.append((given, reason))
        for file in found:
            if left_out(file):
                continue
            files.setdefault(os.path.realpath(file), file)
    return list(files.values()), missing


def _find(argument: str) -> tuple[list[Path], str]:
    """Return the files of one argument, and the reason to report if there are none."""
    path = Path(argument)
    if path.is_dir():
        found = [file for file in sorted(path.iterdir()) if _is_wanted(file)]
        return found, "the folder holds no images (subfolders are not searched: use 'folder/**/*.jpg')"
    if path.exists() or not glob.has_magic(argument):
        found = [path] if path.exists() else []
        broken = "it is a link to a missing file" if path.is_symlink() else "there is no such file or folder"
        return found, broken
    found = [file for file in map(Path, sorted(glob.glob(_pattern(path), recursive=True))) if _is_wanted(file)]
    return found, "no image matches this pattern"


def _pattern(path: Path) -> str:
    """Return the glob pattern of a path; leading folders that exist are taken literally."""
    literal = Path()
    for part in path.parts:
        if not (literal / part).exists():
            break
        literal /= part
    return os.path.join(glob.escape(str(literal)), path.relative_to(literal)) if literal.parts else str(path)


def _is_wanted(file: Path) -> bool:
    known = file.suffix.lower() in IMAGE_SUFFIXES or is_video(file)
    return known and not file.name.startswith(".") and file.is_file()


def choose_outputs(
    files: Sequence[Path], output: str, arguments: Sequence[str], image_suffix: str = ".png"
) -> list[Path]:
    """Return the image or video to write for each input: distinct files, none of which is an input.

    Args:
        files: inputs.
        output: a folder; or, for a single input, a file ``.png``, ``.jpg``, ``.webp`` (``.mp4`` for a video).
        arguments: the inputs as given by the user.
        image_suffix: of the results of images in a folder, one of :data:`OUTPUT_SUFFIXES`.

    Raises:
        OvsegError: ``output`` is a file but there are several inputs, a file of the wrong kind, an input folder, or
            an invalid name.
    """
    if not output:
        raise OvsegError(f"{argument('--output')} is empty text: give a folder")
    try:
        os.stat(output)
    except (FileNotFoundError, NotADirectoryError):
        pass  # it will be created; writing reports errors
    except (OSError, ValueError) as error:  # no permission, a name too long, links in a circle, a byte 0 in it
        reason = explain_system_error(error) or reason_of(error)
        raise OvsegError(f"{argument('--output')} {shown(output)}: {reason}") from error
    target = Path(output)
    suffix = target.suffix.lower()
    if suffix in IMAGE_SUFFIXES | VIDEO_SUFFIXES and not target.is_dir():
        return [_single_output(files, target, suffix)] if files else []
    if target.exists() and not target.is_dir():
        raise OvsegError(f"{argument('--output')} {output} exists and is not a folder: choose another name")
    for given in arguments:
        if os.path.isdir(given) and os.path.realpath(given) == os.path.realpath(target):
            raise OvsegError(
                f"{argument('--output')} {output} is also an input folder, and the results would be taken for inputs "
                "the next time: choose another folder"
            )
    taken = {_key(file) for file in files} | {str(file.absolute()).casefold() for file in files}
    folder = target.absolute()
    resolved = Path(os.path.realpath(target))
    numbers: dict[tuple[str, str], int] = {}  # outputs so far of a stem and a suffix
    outputs = []
    for file in files:
        suffix = ".mp4" if is_video(file) else image_suffix
        stem = shorten(file.stem, _LONGEST_ENDING)
        while True:
            number = numbers[stem, suffix] = numbers.get((stem, suffix), 0) + 1
            candidate = target / (f"{stem}{suffix}" if number == 1 else f"{stem}-{number}{suffix}")
            names = [path.name for path in output_files(candidate)]
            written = {str(place / name).casefold() for name in names for place in (folder, resolved)}
            if not written & taken:
                break
        taken |= written
        outputs.append(candidate)
    return outputs


def output_files(drawing: Path) -> tuple[Path, Path, Path]:
    """Return the files of a result, given the first: drawing, label map, JSON."""
    return drawing, drawing.with_name(f"{drawing.stem}_labels.png"), drawing.with_name(f"{drawing.stem}.json")


def _single_output(files: Sequence[Path], target: Path, suffix: str) -> Path:
    if len(files) > 1:
        raise OvsegError(f"--output {target} is one file, but there are {len(files)} inputs: give a folder")
    allowed = (".mp4",) if is_video(files[0]) else OUTPUT_SUFFIXES
    if suffix not in allowed:
        kind = "a video" if is_video(files[0]) else "an image"
        raise OvsegError(f"--output {target}: the result of {kind} can be written as {', '.join(allowed)}")
    if {_key(path) for path in output_files(target)} & {_key(file) for file in files}:
        raise OvsegError(f"--output {target} would overwrite the input {files[0]}: choose another name")
    return target


def _key(path: Path) -> str:
    return os.path.realpath(path).casefold()  # on some systems a.PNG and a.png are one file
