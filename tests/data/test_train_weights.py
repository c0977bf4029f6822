"""Sampling of several data sets with given probabilities."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from ovseg.config import get_cfg
from ovseg.config.limits import check_config
from ovseg.data.sampler import MixedBatchSampler
from ovseg.errors import OvsegError

SIZES, WEIGHTS = (7, 50), (0.5, 0.5)


def batches(count, start=0, rank=0, world=1, sizes=SIZES, weights=WEIGHTS, size=4, seed=5):
    return list(islice(MixedBatchSampler(sizes, weights, size, seed, start, rank, world), count))


def test_stream_is_the_same_from_anywhere_and_for_any_number_of_processes():
    whole = batches(30)
    assert [position for batch in whole for position, _ in batch] == list(range(120))
    assert batches(20, start=40) == whole[10:]
    halves = [batches(30, rank=rank, world=2) for rank in (0, 1)]
    assert [first + second for first, second in zip(*halves, strict=True)] == whole
    assert batches(15, size=8) == [first + second for first, second in zip(whole[::2], whole[1::2], strict=True)]
    assert batches(30, seed=6) != whole


def test_resuming_beyond_a_block_of_choices(monkeypatch):
    monkeypatch.setattr(MixedBatchSampler, "_BLOCK", 10)
    whole = batches(30)
    for start in (8, 12, 40, 100):
        assert batches(30 - start // 4, start=start) == whole[start // 4 :]


def test_a_data_set_is_one_permutation_after_another():
    indices = [index for batch in batches(100) for _, index in batch]
    small, large = ([index for index in indices if (index < 7) is small] for small in (True, False))
    for first in range(0, len(small) - 7, 7):
        assert sorted(small[first : first + 7]) == list(range(7))
    assert small[:7] != small[7:14]
    assert sorted(large[:50]) == list(range(7, 57))
    mixed = [{index < 7 for _, index in batch} for batch in batches(100)]
    assert sum(len(kinds) == 2 for kinds in mixed) > 70  # drawn for each example, not for each batch


@pytest.mark.parametrize(("weights", "share"), [((0.5, 0.5), 0.5), ((3, 1), 0.75), ((0, 2), 0.0)])
def test_shares(weights, share):
    indices = np.array([index for batch in batches(500, weights=weights) for _, index in batch])
    assert np.mean(indices < 7) == pytest.approx(share, abs=0.04)


def test_a_batch_that_cannot_be_shared():
    with pytest.raises(ValueError, match="cannot be shared"):
        MixedBatchSampler(SIZES, WEIGHTS, 4, 5, world_size=3)


@pytest.mark.parametrize("weights", ["(0.5,)", "(0.5, 0.5, 0.5)", "(0, 0)"])
def test_weights_that_do_not_fit(weights):
    cfg = get_cfg()
    cfg.merge_from_list(["DATASETS.TRAIN", "('a', 'b')", "DATASETS.TRAIN_WEIGHTS", weights])
    with pytest.raises(OvsegError, match=r"DATASETS\.TRAIN_WEIGHTS is .*for each data set of DATASETS\.TRAIN \(2\)"):
        check_config(cfg)


@pytest.mark.parametrize("weights", ["(0.5, -1)", "(0.5, 'a')", "(0.5, None)"])
def test_weights_that_are_no_numbers(weights):
    cfg = get_cfg()
    with pytest.raises(OvsegError, match=r"DATASETS\.TRAIN_WEIGHTS"):
        cfg.merge_from_list(["DATASETS.TRAIN", "('a', 'b')", "DATASETS.TRAIN_WEIGHTS", weights])
        check_config(cfg)


def test_good_weights():
    cfg = get_cfg()
    cfg.merge_from_list(["DATASETS.TRAIN", "('a', 'b')", "DATASETS.TRAIN_WEIGHTS", "(0.5, 0.5)"])
    check_config(cfg)
    assert tuple(cfg.DATASETS.TRAIN_WEIGHTS) == (0.5, 0.5)
