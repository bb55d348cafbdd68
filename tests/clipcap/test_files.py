"""Files and what lies beside them: the same answer as a loop over all names, from any batches."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from unittest.mock import patch

import pyarrow as pa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clipcap import files, samples, scratch, storage
from clipcap.files import FileSettings

ROOT = "s3://b/p"
_ENDINGS = (
    *(
        "",
        ".jpg",
        ".JPG",
        ".",
        ".txt",
        ".TXT",
        ".json",
        ".Json",
        ".jpg.txt",
        ".jpg.json",
        ".txt.txt",
    ),
    *(".x.txt", ".clipcap.txt", ".clipcap.json", ".txt.jpg", ".j\u017fon"),
)
NAMES = st.sets(
    st.builds(
        "{}{}{}".format,
        st.sampled_from(["", "x.y/", "out/"]),
        st.sampled_from(["a", "a.b", "ü\n"]),
        st.sampled_from(_ENDINGS),
    ),
    max_size=14,
)


def batches(names: list[str], size: int) -> Iterator[pa.RecordBatch]:
    """Yield a listing, some rows at a time."""
    for start in range(0, len(names), size):
        rows = [
            {"url": f"{ROOT}/{name}", "size_bytes": len(name), "etag": f"of {name}"}
            for name in names[start : start + size]
        ]
        yield pa.RecordBatch.from_pylist(rows, schema=storage.LISTED)


def told(names: list[str], size: int, chosen: FileSettings) -> dict[str, tuple[str, list[str]]]:
    """Return the version of each sample and the names of its sidecars."""
    found = list(samples.in_order(files.batches(batches(names, size), ROOT, chosen)))
    assert len({one.source_uri for one in found}) == len(found)
    for one in found:
        assert one.at.url == one.source_uri
        assert [side.at.length for side in one.sidecars] == [
            len(side.at.url.removeprefix(f"{ROOT}/")) for side in one.sidecars
        ]
    return {
        one.source_uri.removeprefix(f"{ROOT}/"): (
            one.etag,
            [f"{side.suffix}:{side.at.url.removeprefix(f'{ROOT}/')}" for side in one.sidecars],
        )
        for one in found
    }


def naive(names: set[str], chosen: FileSettings) -> dict[str, tuple[str, list[str]]]:
    """Return the same by a plain loop."""
    seen = sorted(
        name for name in names
        if not name.endswith(files.OURS) and not (chosen.leave_out and name.startswith("out/"))
    )  # fmt: skip

    def suffix(name: str) -> str:
        return name.rpartition(".")[2].lower()

    def stems(name: str) -> tuple[str, str]:
        folder, slash, last = name.rpartition("/")
        return name, f"{folder}{slash}{last.rpartition('.')[0] or last}"

    texts = [name for name in seen if suffix(name) in ("txt", "json")] if chosen.sidecars else []
    images = {stem for name in seen if name not in texts for stem in stems(name)}
    beside = {
        (suffix(name), name.rpartition(".")[0]): name
        for name in texts
        if name.rpartition(".")[0] in images
    }
    sidecars = {name for name in texts if name.rpartition(".")[0] in images}
    answer = {}
    for name in seen:
        if name in sidecars or not fnmatchcase(name, chosen.glob or "*"):
            continue
        own = []
        for kind in ("txt", "json"):
            found = [beside[kind, stem] for stem in stems(name) if (kind, stem) in beside]
            own += [(kind, found[0])] if found else []
        etag = "+".join([f"of {name}", *(f"{kind}=of {text}" for kind, text in own)])
        answer[name] = (etag, [f"{kind}:{text}" for kind, text in own])
    return answer


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    NAMES,
    st.randoms(use_true_random=False),
    st.sampled_from(["", "*", "*.jpg", "x.y/*", "[!a]*", "*.txt", "?.b*"]),
    st.tuples(st.booleans(), st.booleans(), st.integers(1, 5)),
)
def test_it_gives_the_answer_of_a_loop_over_all_names(
    names: set[str], mixed: object, glob: str, how: tuple[bool, bool, int]
) -> None:
    sidecars, leaves_out, size = how
    out = f"{ROOT}/out" if leaves_out else ""
    chosen = FileSettings(glob=glob, sidecars=sidecars, leave_out=out)
    listed = sorted(names)
    mixed.shuffle(listed)  # type: ignore[attr-defined]
    assert told(listed, size, chosen) == naive(names, chosen)


def test_of_two_names_that_differ_in_large_letters_the_last_one_counts() -> None:
    names = {"a.jpg", "a.TXT", "a.txt", "b.jpg", "b.Json", "b.JSON"}
    answer = told(sorted(names), 6, FileSettings())
    assert answer == naive(names, FileSettings())
    assert [own for _, own in answer.values()] == [["txt:a.txt"], ["json:b.Json"]]


def test_without_files_of_text_nothing_is_looked_up() -> None:
    with patch.object(scratch.Scratch, "rows", side_effect=AssertionError("asked a database")):
        assert len(told(["a.jpg", "b.png", "x/c"], 2, FileSettings())) == 3
