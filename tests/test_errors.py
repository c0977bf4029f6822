from __future__ import annotations

import errno
import gc
import os
import signal

import pytest
from torch.utils.data import DataLoader, Dataset, dataloader

from ovseg import errors
from ovseg.errors import OvsegError, reason_of, user_errors


class _Deadly(Dataset):
    """Kills the process that loads its last item."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        if index == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return index


def test_user_errors_are_one_line_and_status_2(capsys):
    with pytest.raises(SystemExit) as ended, user_errors():
        raise OvsegError("no such file x.png: check --input")
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: no such file x.png: check --input\n"


def test_names_with_line_ends_stay_on_one_line():
    assert str(OvsegError("there is no file a\nb\x1b[31m")) == r"there is no file a\nb\x1b[31m"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (KeyError("id"), "it has no 'id'"),
        (ValueError("not\n a number"), "not a number"),
        (ValueError(), "it is damaged"),
        (RecursionError("maximum recursion depth exceeded"), "it is nested too deeply"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 300), "File name too long"),
        (RuntimeError("json.decoder.JSONDecodeError: Expecting value"), "Expecting value"),
        (ValueError("x" * 1000), "x" * 200 + "..."),
    ],
)
def test_reasons_are_short_and_without_names_of_classes(error, reason):
    assert reason_of(error) == reason


def test_a_killed_worker_is_reported_with_the_remedy(capsys):
    with pytest.raises(SystemExit) as ended, user_errors():
        list(DataLoader(_Deadly(), num_workers=1))
    assert ended.value.code == 2
    del ended
    gc.collect()  # an iterator that is alive would raise again, in another test, when any child process ends
    message = capsys.readouterr().err
    assert message.startswith("error: a process that loads data was killed")
    assert "--resume" in message


def test_a_killed_worker_that_is_reported_again_meanwhile(capsys, monkeypatch):
    """PyTorch's handler of SIGCHLD raises wherever the main process is, also in our handling of a reset connection."""
    is_lost_worker, killed = (
        errors._is_lost_worker,
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."),
    )

    def interrupted(error):
        if isinstance(error, ConnectionResetError):
            raise killed
        return is_lost_worker(error)

    monkeypatch.setattr(errors, "_is_lost_worker", interrupted)
    with pytest.raises(SystemExit) as ended, user_errors():
        raise ConnectionResetError("reset by peer")
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: a process that loads data was killed (DataLoader worker (pid 7)")


def test_defects_of_ours_keep_their_traceback():
    with pytest.raises(RuntimeError, match="a bug"), user_errors():
        raise RuntimeError("a bug")


def test_a_reset_connection_is_a_lost_worker_only_in_the_data_loader(capsys, monkeypatch):
    def reset(*_):
        raise ConnectionResetError("reset by peer")

    with pytest.raises(ConnectionResetError), user_errors():
        reset()
    monkeypatch.setattr(dataloader._SingleProcessDataLoaderIter, "_next_data", reset)
    with pytest.raises(SystemExit), user_errors():
        list(DataLoader(_Deadly()))
    assert capsys.readouterr().err.startswith("error: a process that loads data was killed (reset by peer)")
