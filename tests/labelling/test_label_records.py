"""Records of a labelling run and what they depend on, without a model."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from PIL import Image

from ovseg.errors import CannotWrite, OvsegError
from ovseg.labelling import settings
from ovseg.labelling.records import failed_record, key_of, read_index, read_records, record_file, record_of, stamp_of
from ovseg.labelling.stream import segment_stream
from ovseg.labelling.written import WrittenFiles
from ovseg.vocabulary import Vocabulary
from tests.labelling.stand_in import WORDS, Bands, save_images

VOCABULARY = Vocabulary.from_words(WORDS)


def line_of(image, grey: int) -> str:
    result = Bands()(np.full((3, 3, 3), grey, np.uint8), VOCABULARY)
    return record_of(image, stamp_of(image), result)


def test_records_of_an_image_as_it_was_are_not_used(tmp_path):
    image = tmp_path / "a.png"
    image.write_bytes(b"old")
    record_file(tmp_path, 1).write_text(line_of(image, 100))
    assert read_index(tmp_path, [image], 3)[key_of(image)].areas == {0: 9}
    image.write_bytes(b"changed")
    assert read_index(tmp_path, [image], 3) == {}
    failed = failed_record(image, stamp_of(image), "damaged")
    record_file(tmp_path, 0).write_text(failed)
    assert read_index(tmp_path, [image], 3)[key_of(image)].reason == "damaged"
    record_file(tmp_path, 0).write_text(line_of(image, 220) + failed)
    assert read_index(tmp_path, [image], 3)[key_of(image)].areas == {2: 9}
    assert read_index(tmp_path, [], 3) == {}


CHANGES = {
    "areas": [{"0": "x"}, {"3": 9}, {"-1": 9}, [9], {"0": 1.5}],
    "size": [[0, 0], [3], [3, "3"], [3, 2], 3],
    "score": ["x", None, float("nan")],
    "stamp": [None, [1], ["a", "b"]],
    "image": [3, None, ["a"]],
    "regions": [None, [3], [{}], "abc"],
}
REGION = {"label": ["x", 3, -1], "score": [None], "box": [[0, 0, 4, 3], [0, 0, 3], [0, 0, 0, 3]], "counts": [None]}


def test_records_of_wrong_types_are_damaged(tmp_path):
    image = tmp_path / "a.png"
    image.write_bytes(b"x")
    good = json.loads(line_of(image, 100))
    wrong = [good | {key: value} for key, values in CHANGES.items() for value in values]
    regions = [good["regions"][0] | {key: value} for key, values in REGION.items() for value in values]
    for entry in (*wrong, *(good | {"regions": [region]} for region in regions)):
        record_file(tmp_path, 0).write_text(json.dumps(entry) + "\n")
        assert read_index(tmp_path, [image], 3) == {}, entry
    record_file(tmp_path, 0).write_text(json.dumps(good) + "\n")
    index = read_index(tmp_path, [image], 3)
    assert [found.size for found in read_records(index, WORDS)] == [(3, 3)]


class Fails(Bands):
    """Fails for batches, and for black images, with an error that is not expected."""

    def batch(self, images, vocabulary, **options):
        if len(images) > 1 or not images[0].any():
            raise self.error
        return super().batch(images, vocabulary, **options)


def outcomes(tmp_path, error):
    segmenter = Fails()
    segmenter.error = error
    paths = save_images(tmp_path, 3, (3, 3))
    Image.new("RGB", (3, 3)).save(paths[1])
    Image.new("RGB", (3, 3), (100, 100, 100)).save(paths[0])
    Image.new("RGB", (3, 3), (100, 100, 100)).save(paths[2])
    jobs = [(path, None) for path in paths]
    return list(segment_stream(segmenter, jobs, VOCABULARY, lambda job, result: result.label_map.max(), batch=3))


@pytest.mark.parametrize("error", [IndexError("a defect"), RuntimeError("out of memory"), OvsegError("too small")])
def test_an_image_does_not_fail_those_of_its_batch(tmp_path, error):
    assert [outcome.error for outcome in outcomes(tmp_path, error)] == [None, error, None]


def test_a_full_disk_ends_the_stream(tmp_path):
    with pytest.raises(CannotWrite):
        outcomes(tmp_path, CannotWrite("disk full"))


def test_folders_of_weights_count_by_their_files(tmp_path, monkeypatch):
    (tmp_path / "clip" / "sub").mkdir(parents=True)
    (tmp_path / "clip" / "sub" / "model.safetensors").write_bytes(b"abc")
    (tmp_path / "clip" / "broken").symlink_to("absent")
    name = f"local-dir:{tmp_path / 'clip'}"
    monkeypatch.setattr(settings, "load_cfg", lambda *args: {"MODEL": {"CLIP_ADAPTER": {"CLIP_MODEL_NAME": name}}})
    before = settings.folder_fingerprints("", ())
    assert list(before) == ["MODEL.CLIP_ADAPTER.CLIP_MODEL_NAME"] and before == settings.folder_fingerprints("", ())
    os.utime(tmp_path / "clip" / "sub" / "model.safetensors", (1, 1))
    assert settings.folder_fingerprints("", ()) != before


def test_only_listed_files_are_removed(tmp_path):
    folder, listed = tmp_path / "png", tmp_path / "files-png.jsonl"
    folder.mkdir()
    for path in (tmp_path / "outside.png", folder / "own.png"):
        path.write_bytes(b"x")
    listed.write_text('"../outside.png"\n"absent.png"\n[]\n' + json.dumps(str(folder / "own.png")) + '\n"unfin')
    with pytest.raises(KeyboardInterrupt), WrittenFiles(listed, folder).replaced() as files:
        files.announce(folder / "a.png")
        (folder / "a.png").write_bytes(b"x")
        raise KeyboardInterrupt
    with WrittenFiles(listed, folder).replaced() as files:
        files.announce(folder / "b.png")
    assert sorted(os.listdir(folder)) == ["own.png"] and (tmp_path / "outside.png").exists()
    assert listed.read_text() == '"b.png"\n'
