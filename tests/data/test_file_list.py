from __future__ import annotations

from pathlib import Path

from ovseg.data.file_list import file_list_checksum


def test_the_published_sum_of_ade20ks_validation_split():
    files = [Path("somewhere") / f"ADE_val_{i:08d}.jpg" for i in range(2000, 0, -1)]
    assert file_list_checksum(files) == "302fe0402c1fa1a83d54bc5d20723d53e2367320105f036673dafb1bd88aff9d"


def test_folders_and_formats_do_not_matter_but_names_do():
    assert file_list_checksum(["a/x.1.jpg", "b/y.png"]) == file_list_checksum(["y.tif", "x.1.png"])
    assert file_list_checksum(["x.jpg"]) != file_list_checksum(["x.jpg", "x.jpg"]) != file_list_checksum([])
