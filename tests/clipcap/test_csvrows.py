"""Files of rows that people wrote: a quote that is not closed costs none of them silently."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from clipcap import canaryfiles, captionfiles, csvrows, judgements, texts
from clipcap.errors import SettingsError

TABLE = 'image,label,caption\na.png,good,"Hello\nb.png,bad,b\nc.png,good,{}\n'


@pytest.mark.parametrize("end", ["c", '"c"'])  # the file ends within it, or another quote ends it
@pytest.mark.parametrize(
    "read",
    [
        captionfiles.read,
        lambda url: judgements.read(url, "out", captioner_id="x"),
        lambda url: canaryfiles.read(url, []),
        texts.read,
    ],
    ids=["captions", "judgements", "canaries", "texts"],
)
def test_a_quote_that_is_not_closed_swallows_no_rows(
    tmp_path: Path, read: Callable[[str], object], end: str
) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(TABLE.format(end))
    with pytest.raises(SettingsError, match=r"rows\.csv .*line 4: .*must be doubled"):
        read(str(path))


def test_nor_in_a_file_of_texts_alone(tmp_path: Path) -> None:
    (tmp_path / "said.csv").write_text('caption\n"Hello\na cat.\n')
    with pytest.raises(SettingsError, match=r"said\.csv .*line 3: .*must be doubled"):
        texts.read(str(tmp_path / "said.csv"))


def test_quotes_that_are_right_or_text_change_nothing() -> None:
    assert csvrows.cells('a,b\n\n"x ""y""\nz",5" nails\n') == [
        ["a", "b"], ['x "y"\nz', '5" nails'],
    ]  # fmt: skip
    assert csvrows.cells('a\tb\n"x\ty\n', "\t", quoted=False) == [["a", "b"], ['"x', "y"]]
    assert csvrows.records('a;b\n"1;2";3\n', ";") == [{"a": "1;2", "b": "3"}]
    assert csvrows.cells("") == []
