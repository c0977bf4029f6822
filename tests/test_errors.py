from __future__ import annotations

import os
import signal

import pytest
from torch.utils.data import DataLoader, Dataset, dataloader

from ovseg.errors import OvsegError, user_errors


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


def test_a_killed_worker_is_told_with_the_remedy(capsys):
    with pytest.raises(SystemExit) as ended, user_errors():
        list(DataLoader(_Deadly(), num_workers=1))
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("error: a process that loads data is gone")
    assert "--resume" in message


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
    assert capsys.readouterr().err.startswith("error: a process that loads data is gone (reset by peer)")
