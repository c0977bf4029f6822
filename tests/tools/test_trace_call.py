from __future__ import annotations

import re

from tests.scripts import REPO, load_script
from tests.tiny_model import make_tiny_model


def test_a_call_is_traced(tmp_path, capsys):
    config, weights = make_tiny_model(tmp_path)
    config.write_text(config.read_text().replace("\n  WEIGHTS: ''", f"\n  WEIGHTS: {weights}"))
    load_script("tools/trace_call.py").main(["--config-file", str(config), "--words", "star", "brick"])
    printed = capsys.readouterr().out
    counts = re.findall(r"^(.+): (\d+) files of ovseg/, (\d+) frames deep", printed, flags=re.MULTILINE)
    assert [title for title, *_ in counts] == ["a file", "the same words again", "an array"]
    listed = re.findall(r"  files: (.*)\n  stack: (.*)", printed)
    for (_, number, depth), (files, stack) in zip(counts, listed, strict=True):
        assert (len(files.split(", ")), len(stack.split(" > "))) == (int(number), int(depth))
        assert "segmenter.py" in files
        assert stack.startswith("segmenter.py:")
        assert all((REPO / "ovseg" / file).is_file() for file in files.split(", "))
