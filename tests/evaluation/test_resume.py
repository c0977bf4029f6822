"""Evaluations that are broken off and taken up, by whatever number of processes: bit-equal to undisturbed ones."""

from __future__ import annotations

import json
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import evaluation_standin as standin
import numpy as np
import pytest

from ovseg.errors import OvsegError
from ovseg.evaluation import partial, runner
from ovseg.evaluation.predictions import read_worst
from tests.processes import CONTEXT

FILES = ("per_class.csv", "sem_seg_predictions.json", "worst_images.npz")


def folder_of(output: Path) -> Path:
    return output / "inference" / standin.NAME


def evaluate(output: Path, model: standin.StandIn | None = None, resume: bool = True, *opts: object) -> dict:
    cfg = standin.configuration(output, "TEST.REPORT", True, *opts)
    return runner.evaluate_all(cfg, model or standin.StandIn(), resume=resume)[standin.NAME]


def left(output: Path) -> dict[str, object]:
    """What must not differ: matrix, every score, predictions, worst images."""
    folder = folder_of(output)
    record = json.loads((folder / "results.json").read_text())
    with np.load(folder / "confusion.npz") as file:
        confusion = file["confusion"]
    assert confusion.dtype == np.int64
    assert not list(folder.glob(".*"))
    return {
        "confusion": confusion.tobytes(),
        "images": record["num_images"],
        "results": record["results"],
        "worst": read_worst(folder / FILES[2]),
        **{name: (folder / name).read_bytes() for name in FILES[:2]},
    }


@pytest.fixture
def undisturbed(data_folder) -> dict[str, object]:
    evaluate(data_folder / "undisturbed", resume=False)
    return left(data_folder / "undisturbed")


class Stops(standin.StandIn):
    """Raises when it is asked for one image more."""

    def __init__(self, after: int, error: BaseException) -> None:
        super().__init__()
        self.after, self.error = after, error

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        if len(self.requests) == self.after:
            raise self.error
        return super().forward(batched_inputs)


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), SystemExit(143), OvsegError("label")], ids=["ctrl-c", "term", "error"]
)
def test_an_interrupted_evaluation_goes_on(data_folder, undisturbed, error):
    for after in (2, 3):  # interrupted twice: each run leaves a part
        with pytest.raises(type(error)):
            evaluate(data_folder / "out", Stops(after, error))
    assert not (folder_of(data_folder / "out") / "results.json").exists()
    model = standin.StandIn()
    evaluate(data_folder / "out", model)
    assert [Path(request["file_name"]).stem for request in model.requests] == ["5", "6"]
    assert left(data_folder / "out") == undisturbed


def test_predictions_as_png_are_those_of_an_undisturbed_run(data_folder):
    opts = ("TEST.SAVE_PREDICTIONS", None, "TEST.SAVE_PREDICTIONS", "png")
    evaluate(data_folder / "whole", None, False, *opts)
    with pytest.raises(KeyboardInterrupt):
        evaluate(data_folder / "out", Stops(4, KeyboardInterrupt()), True, *opts)
    evaluate(data_folder / "out", None, True, *opts)
    whole, out = (folder_of(data_folder / name) / "predictions" for name in ("whole", "out"))
    assert [path.name for path in sorted(whole.iterdir())] == [f"{index}.png" for index in range(standin.NUM_IMAGES)]
    assert all((out / path.name).read_bytes() == path.read_bytes() for path in whole.iterdir())


def test_an_interruption_in_the_middle_of_counting_counts_nothing_twice(data_folder, undisturbed, monkeypatch):
    """The matrix has the image, the recall of proposals not yet: the last state that was whole is kept."""
    monkeypatch.setattr(partial, "SAVE_PERIOD", 0)
    model, process = standin.StandIn(), runner.ProposalRecallEvaluator.process

    def interrupted(self, inputs, outputs):
        if inputs[0]["index"] == 4:
            raise KeyboardInterrupt
        process(self, inputs, outputs)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(runner.ProposalRecallEvaluator, "process", interrupted)
        evaluate(data_folder / "out", model)
    again = standin.StandIn()
    evaluate(data_folder / "out", again)
    assert [request["file_name"][-5] for request in again.requests] == ["4", "5", "6"]
    assert left(data_folder / "out") == undisturbed


def test_after_the_broken_file_is_mended_the_rest_is_done(data_folder, undisturbed):
    broken = data_folder / "images" / "3.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:50])
    with pytest.raises(OvsegError, match=r"3\.png"):
        evaluate(data_folder / "out")
    broken.write_bytes(whole)
    model = standin.StandIn()
    evaluate(data_folder / "out", model)
    assert len(model.requests) == standin.NUM_IMAGES - 3
    assert left(data_folder / "out") == undisturbed


def test_a_finished_evaluation_is_not_done_again_unless_something_changed(data_folder, undisturbed, capsys):
    output, model = data_folder / "undisturbed", standin.StandIn()
    parts = folder_of(output) / partial.FOLDER
    parts.mkdir()  # killed after the results were written
    results = evaluate(output, model)
    assert not model.requests
    assert results["sem_seg"]["mIoU"] == undisturbed["results"]["sem_seg"]["mIoU"]
    assert np.isnan(results["sem_seg"]["IoU-water"])
    assert "mIoU-union (= mIoU)" in capsys.readouterr().out
    assert left(output) == undisturbed
    evaluate(output, model, True, "TEST.MIOU_CONVENTION", "ground_truth")
    assert len(model.requests) == standin.NUM_IMAGES
    evaluate(output, model, False, "TEST.MIOU_CONVENTION", "ground_truth")
    assert len(model.requests) == 2 * standin.NUM_IMAGES


@pytest.mark.parametrize("how", ["settings", "weights", "images", "no --resume"])
def test_parts_of_something_else_are_dropped_with_a_warning(data_folder, how, caplog):
    with pytest.raises(KeyboardInterrupt):
        evaluate(data_folder / "out", Stops(4, KeyboardInterrupt()))
    model, opts, resume = standin.StandIn(), (), how != "no --resume"
    if how == "settings":
        opts, reason = ("TEST.SLIDING_TILE_SIZE", 99), "config.TEST.SLIDING_TILE_SIZE was 224 and is 99"
    elif how == "weights":
        model.register_buffer("scale", standin.torch.ones(3))
        reason = "(model was "
    elif how == "images":
        for kind in ("images", "labels"):
            (data_folder / kind / "6.png").rename(data_folder / kind / "8.png")
        reason = "data.file_list_sha256 was "
    else:
        reason = "--resume continues one"
    evaluate(data_folder / "out", model, resume, *opts)
    assert len(model.requests) == standin.NUM_IMAGES
    assert reason in caplog.text
    assert left(data_folder / "out")["images"] == standin.NUM_IMAGES


def test_other_workers_device_and_folder_are_no_difference(data_folder, undisturbed):
    with pytest.raises(KeyboardInterrupt):
        evaluate(data_folder / "out", Stops(4, KeyboardInterrupt()))
    (data_folder / "out").rename(data_folder / "moved")
    model = standin.StandIn()
    evaluate(data_folder / "moved", model, True, "DATALOADER.NUM_WORKERS", 1, "MODEL.WEIGHTS", "elsewhere.pth")
    assert len(model.requests) == standin.NUM_IMAGES - 4
    assert left(data_folder / "moved") == undisturbed


def test_a_damaged_part_and_one_that_counts_again_are_left_out(data_folder, undisturbed, caplog):
    for after in (2, 2):
        with pytest.raises(KeyboardInterrupt):
            evaluate(data_folder / "out", Stops(after, KeyboardInterrupt()))
    first, second = sorted((folder_of(data_folder / "out") / partial.FOLDER).glob("*.npz"))
    (first.parent / "zzz.0.npz").write_bytes(second.read_bytes())
    first.write_bytes(first.read_bytes()[:100])
    model = standin.StandIn()
    evaluate(data_folder / "out", model)
    assert len(model.requests) == standin.NUM_IMAGES - 2
    assert f"{first.name} cannot be read" in caplog.text
    assert "zzz.0.npz holds images of another part" in caplog.text
    assert left(data_folder / "out") == undisturbed


def test_a_second_evaluation_in_the_folder_stops_the_first(data_folder):
    class Starts(standin.StandIn):
        def forward(self, batched_inputs):
            if len(self.requests) == 3:
                evaluate(data_folder / "out", Stops(1, KeyboardInterrupt()))
            return super().forward(batched_inputs)

    with pytest.raises((OvsegError, KeyboardInterrupt)) as error:
        evaluate(data_folder / "out", Starts())
    assert "another evaluation is writing to" in str(error.value)


def test_batches_stay_the_same_whatever_is_done(data_folder):
    """Images of a batch are padded to one size, so an image's answer may depend on its neighbours."""

    class Neighbours(Stops):
        def forward(self, batched_inputs):
            self.seen.append([sample["file_name"][-5] for sample in batched_inputs])
            return super().forward(batched_inputs)

    batches = []
    for after in (4, 100):
        model = Neighbours(after, KeyboardInterrupt())
        model.seen = batches
        try:
            evaluate(data_folder / "out", model, True, "SOLVER.TEST_IMS_PER_BATCH", 2)
        except KeyboardInterrupt:
            batches.pop()  # asked for, not answered
    assert batches == [["0", "1"], ["2", "3"], ["4", "5"], ["6"]]


def processes(data: Path, output: str, number: int, seconds: float = 0) -> list[BaseProcess]:
    (data / "meeting").unlink(missing_ok=True)
    running = [
        CONTEXT.Process(target=standin.work, args=(data, output, rank, number, seconds)) for rank in range(number)
    ]
    for process in running:
        process.start()
    return running


def finish(running: list[BaseProcess]) -> None:
    for process in running:
        process.join(120)
        process.kill()  # if it hangs
    assert [process.exitcode for process in running] == [0] * len(running)


def kill_when_saved(running: list[BaseProcess], parts: Path) -> None:
    """SIGKILL all as soon as each has saved something."""
    until = time.monotonic() + 120
    while len(list(parts.glob("[!.]*.npz"))) < len(running):
        assert time.monotonic() < until
        assert all(process.is_alive() for process in running)
        time.sleep(0.01)
    for process in running:
        process.kill()
        process.join(60)
    assert {process.exitcode for process in running} == {-signal.SIGKILL}


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_killed_processes_and_another_number_of_them(data_folder, undisturbed, before, after):
    parts = folder_of(data_folder / "out") / partial.FOLDER
    kill_when_saved(processes(data_folder, "out", before, seconds=0.3), parts)
    done = sum(len(np.load(path)["done"]) for path in parts.glob("[!.]*.npz"))
    assert 0 < done < standin.NUM_IMAGES
    finish(processes(data_folder, "out", after))
    assert left(data_folder / "out") == undisturbed


def test_two_processes_give_the_same_as_one(data_folder, undisturbed):
    finish(processes(data_folder, "two", 2))
    assert left(data_folder / "two") == undisturbed
    assert json.loads((folder_of(data_folder / "two") / "results.json").read_text())["num_processes"] == 2
