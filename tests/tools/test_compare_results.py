from __future__ import annotations

import json
from pathlib import Path

import pytest

from ovseg.errors import OvsegError
from tests.scripts import load_script

compare_results = load_script("tools/compare_results.py")

THREE = {"plain": 10.0, "ft_0": 20.0, "ft_1": 24.0}


def record(miou: float, **changes: object) -> dict:
    protocol = {
        "dataset": changes.get("dataset", "toy"),
        "variant": changes.pop("variant", "names"),
        "ignore_label": 255,
        "synonyms": "none",
        **changes.pop("protocol", {}),
    }
    results = {
        "sem_seg": {
            "mIoU": miou,
            "mIoU-union": miou,
            "mIoU-gt": miou + 1,
            "mIoU-base": miou,
            "IoU-cat": 3.0,
            "pACC": None,
        },
        "proposals": {"recall@0.5": 90.0},
    }
    return {
        **{"schema": 2, "dataset": "toy", "num_images": 9, "file_list_sha256": "ab", "protocol": protocol},
        **{"miou_convention": "union", "oracle": None, "weights": {"model_sha256": "12"}, "results": results},
        **{"views": {}, "config": {"OUTPUT_DIR": str(miou), "MODEL": {"X": 1}}, "versions": {}, "git_commit": None},
        **{"device": "cpu", **changes},
    }


def evaluated(folder: Path, content: dict) -> Path:
    file = folder / "inference" / content["dataset"] / "results.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(content))
    return folder


def printed(capsys, *arguments: object) -> list[list[str]]:
    compare_results.main([str(argument) for argument in arguments])
    return [[cell.strip() for cell in line.strip("| \n").split("|")] for line in capsys.readouterr().out.splitlines()]


def test_a_column_for_each_run_with_differences_from_the_first(tmp_path, capsys):
    runs = [
        evaluated(tmp_path / name, record(miou)) for name, miou in (("plain", 10.0), ("ft_0", 20.0), ("ft_1", 24.0))
    ]
    runs[1] /= "inference/toy/results.json"  # folders and files may be given
    rows = printed(capsys, *runs)
    assert rows[1] == ["toy", "plain", "ft (2 runs)"]
    assert ["mIoU", "10.00", "22.00 ± 2.83 (+12.00)"] in rows
    assert ["recall@0.5", "90.00", "90.00 ± 0.00 (+0.00)"] in rows
    assert ["pACC", "-", "-"] in rows
    assert [row[0] for row in rows[3:]] == ["mIoU", "mIoU-union", "mIoU-gt", "mIoU-base", "pACC", "recall@0.5", ""]


def test_a_row_for_each_run(tmp_path, capsys):
    runs = [
        evaluated(tmp_path / name, record(miou)) for name, miou in (("plain", 10.0), ("ft_0", 20.0), ("ft_1", 24.0))
    ]
    rows = printed(capsys, "--rows", *runs, "--scores", "mIoU", "recall@0.5")
    assert rows[1] == ["toy", "mIoU", "recall@0.5"]
    assert ["plain", "10.00", "90.00"] in rows
    assert ["ft (2 runs)", "22.00 ± 2.83", "90.00 ± 0.00"] in rows


def test_the_settings_in_which_runs_differ(tmp_path, capsys):
    other = record(3.0, config={"OUTPUT_DIR": "", "MODEL": {"X": 2}}, oracle={"oracle": "masks"})
    rows = printed(capsys, "--settings", evaluated(tmp_path / "a", record(2.0)), evaluated(tmp_path / "b", other))
    assert rows[1] == ["toy", "a", "b (oracle masks)"]
    assert ["config.MODEL.X: 1", "2"] in rows
    assert not any("OUTPUT_DIR" in cell for row in rows for cell in row)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"variant": "synonyms"}, "protocol.variant is names / synonyms"),
        ({"protocol": {"synonyms": "pixel"}}, "protocol.synonyms is none / pixel"),
        ({"protocol": {"words": "present"}}, "protocol.words is all / present"),
        ({"oracle": {"oracle": "words"}}, "protocol.words is all / present"),
        (
            {"protocol": {"tag": "PAS-21t", "background": "threshold"}},
            "protocol.tag is None / PAS-21t; protocol.background is None / threshold",
        ),
        ({"miou_convention": "ground_truth"}, "miou_convention is union / ground_truth"),
        ({"num_images": 8, "file_list_sha256": "cd"}, "num_images is 9 / 8; file_list_sha256 is ab / cd"),
    ],
)
def test_what_must_not_be_compared_is_refused_and_marked_when_forced(tmp_path, capsys, change, reason):
    runs = [evaluated(tmp_path / "a", record(2.0)), evaluated(tmp_path / "b", record(3.0, **change))]
    with pytest.raises(OvsegError) as error:
        compare_results.main(list(map(str, runs)))
    assert f"a and b must not be compared: {reason}." in str(error.value)
    rows = printed(capsys, "--force", *runs)
    assert rows[1][:2] == ["toy", "a"] and rows[1][2].startswith("b *")
    assert [f"* b must not be compared with a: {reason}"] in rows


def test_scores_of_two_tables_of_fathers_must_not_be_compared(tmp_path, capsys):
    tables = [None, {"fathers": {"dog": ["animal"]}}, {"fathers": {"cat": ["animal"]}}]
    plain, dog, cat = (
        evaluated(tmp_path / f"run{index}x", record(2.0, sg_iou=table)) for index, table in enumerate(tables)
    )
    assert len(printed(capsys, plain, dog)[1]) == 3
    with pytest.raises(OvsegError, match="sg_iou_table is"):
        compare_results.main([str(dog), str(cat)])


def test_runs_with_the_same_name_but_for_the_seed_must_agree_too(tmp_path):
    runs = [evaluated(tmp_path / "a_0", record(2.0)), evaluated(tmp_path / "a_1", record(3.0, variant="synonyms"))]
    with pytest.raises(OvsegError, match=r"protocol\.variant"):
        compare_results.main(list(map(str, runs)))


def test_other_data_sets_are_refused_and_side_by_side_when_forced(tmp_path, capsys):
    runs = [evaluated(tmp_path / "a", record(2.0)), evaluated(tmp_path / "b", record(3.0, dataset="voc"))]
    with pytest.raises(OvsegError, match="a: evaluated on toy, but not b"):
        compare_results.main(list(map(str, runs)))
    rows = printed(capsys, "--force", *runs)
    assert rows[1] == ["toy / voc", "a on toy", "b on voc *"]


def test_the_protocols_of_pascal_voc_are_named(tmp_path):
    rules = {"PAS-20": ("ignored", 20), "PAS-20b": ("leftover words", 21), "PAS-21": ("synonyms", 21)}
    runs = []
    for tag, (background, classes) in rules.items():
        protocol = {"tag": tag, "background": background, "num_classes": classes}
        runs.append(evaluated(tmp_path / tag, record(2.0, dataset=f"voc{tag[4:]}", protocol=protocol)))
    for pair in (runs[:2], runs[1:]):
        with pytest.raises(OvsegError) as error:
            compare_results.main(list(map(str, pair)))
        rows = [f"{run.name} (background: {rules[run.name][0]}, {rules[run.name][1]} classes)" for run in pair]
        assert f"{' and '.join(rows)} are different protocols of PASCAL VOC" in str(error.value)


def test_grounding_miou_has_a_row_of_its_own(tmp_path, capsys):
    runs = []
    for name, miou in (("a", 2.0), ("b", 3.0)):
        content = record(miou)
        content["results"]["grounding"] = {"Grounding-mIoU": 10 * miou, "Grounding-IoU-cat": 1.0}
        runs.append(evaluated(tmp_path / name, content))
    assert ["Grounding-mIoU", "20.00", "30.00 (+10.00)"] in printed(capsys, *runs)
    runs.append(evaluated(tmp_path / "c", record(4.0)))  # the rest can be compared if only some have it
    assert not any(row[0] == "Grounding-mIoU" for row in printed(capsys, *runs))


def test_a_threshold_is_a_setting_and_no_protocol(tmp_path, capsys):
    runs = [evaluated(tmp_path / str(t), record(2.0 + t, background_threshold=t)) for t in (0.1, 0.2)]
    assert ["background_threshold: 0.1", "0.2"] in printed(capsys, "--settings", *runs)


def test_folders_of_the_same_name_are_told_apart(tmp_path, capsys):
    runs = [evaluated(tmp_path / parent / "out", record(miou)) for parent, miou in (("x", 2.0), ("y", 3.0))]
    assert printed(capsys, *runs)[1] == ["toy", "x/out", "y/out"]


def test_a_score_that_a_run_lacks_is_named_with_those_it_has(tmp_path):
    run = evaluated(tmp_path / "plain", record(10.0))
    with pytest.raises(OvsegError, match=r"plain has no mIoU-novel on toy.*mIoU-base"):
        compare_results.main([str(run), "--scores", "mIoU", "mIoU-novel"])


def test_what_cannot_be_compared_at_all_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    old = record(2.0)
    del old["schema"]
    (tmp_path / "other.json").write_text('{"a": 1}')
    (tmp_path / "broken.json").write_text("{")
    for path, message in (
        (tmp_path / "empty", r"no inference/<data set>/results.json in .*empty"),
        (evaluated(tmp_path / "old", old), r"results.json lacks protocol and data: it was written by an older ovseg"),
        (evaluated(tmp_path / "new", record(2.0, schema=3)), r"has schema 3; evaluate again"),
        (tmp_path / "other.json", r"other\.json is not a results\.json"),
        (tmp_path / "broken.json", r"broken\.json cannot be read"),
    ):
        with pytest.raises(OvsegError, match=message):
            compare_results.main([str(path)])


def test_the_same_run_twice_is_one_run(tmp_path, capsys):
    """No spread of one run with itself, however it is given."""
    run = evaluated(tmp_path / "ft_0", record(20.0))
    file = run / "inference/toy/results.json"
    (tmp_path / "link").symlink_to(run)
    for others in ([run], [file], [file.parent], [file.parent.parent], [tmp_path / "link"], [run, file]):
        rows = printed(capsys, run, *others, "--scores", "mIoU")
        assert rows[1] == ["toy", "ft"]
        assert ["mIoU", "20.00"] in rows
        assert rows[-1] == [f"* {others[-1]} is the same run as {run}, counted once"]
        assert not any("±" in cell for row in rows for cell in row)


def test_copies_of_a_run_are_one_run(tmp_path, capsys):
    run, real = evaluated(tmp_path / "ft_0", record(20.0)), evaluated(tmp_path / "ft_2", record(24.0))
    copy, other = evaluated(tmp_path / "ft_1", record(20.0)), evaluated(tmp_path / "other", record(20.0))
    rows = printed(capsys, run, copy, real, other, "--scores", "mIoU")
    assert rows[1] == ["toy", "ft (2 runs)", "other"]
    assert ["mIoU", "22.00 ± 2.83", "20.00 (-2.00)"] in rows
    assert [f"* {copy} is the same run as {run}, counted once"] in rows
    assert [f"* {other} is the same run as {run}"] in rows


def test_folders_below_one_called_inference(tmp_path, capsys):
    runs = [evaluated(tmp_path / "inference" / name, record(miou)) for name, miou in (("a", 1.0), ("b", 2.0))]
    assert printed(capsys, *runs)[1] == ["toy", "a", "b"]
