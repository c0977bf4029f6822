"""Warnings of unfamiliar words: each word once, in bounded memory."""

from __future__ import annotations

from ovseg.meta_arch import word_encoding
from ovseg.meta_arch.word_encoding import UnfamiliarWarnings


def test_each_word_is_named_once(caplog):
    warnings = UnfamiliarWarnings()
    for words in (["guitar", "castle"], ["castle"], [], ["castle", "harp"]):
        warnings.warn(words)
    named = [record.getMessage().partition(": ")[2] for record in caplog.records]
    assert named == ["guitar, castle", "harp"]


def test_long_lists_are_cut(caplog):
    UnfamiliarWarnings().warn([f"word {k}" for k in range(13)])
    assert caplog.records[-1].getMessage().endswith("word 8, word 9 and 3 more")


def test_what_is_remembered_is_limited(caplog, monkeypatch):
    monkeypatch.setattr(word_encoding, "REMEMBERED", 20)
    warnings, sizes = UnfamiliarWarnings(), []
    for number in range(100):
        warnings.warn([f"word {number} {k}" for k in range(3)])
        sizes.append(len(warnings))
    assert max(sizes) <= 20 and len(caplog.records) == 100
    warnings.warn([f"many {k}" for k in range(50)])
    assert len(warnings) == 20
