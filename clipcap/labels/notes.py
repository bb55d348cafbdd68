"""A sound label set in, what its author should know about it out."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Final

from clipcap.labels.sets import LabelSet

_MOST_TOKENS: Final = 77  # CLIP's; SigLIP's are 64
_TOKENS_PER_WORD: Final = 1.3  # of English, by CLIP's byte pairs
_SHOWN: Final = 5  # cases in a note
_WORD: Final = re.compile(r"\w+|[^\w\s]")


def notes(label_set: LabelSet) -> list[str]:
    """Return sentences on what is allowed, but seldom meant."""
    return [
        *_alike(label_set),
        *_same_texts(label_set),
        *_doubled_templates(label_set),
        *_long(label_set),
        *_unsigned(label_set),
    ]


def _alike(label_set: LabelSet) -> Iterator[str]:
    """Yield names that are one but for a plural or a hyphen."""
    folded = defaultdict(list)
    for name in label_set.names:
        plain = re.sub(r"[\W_]+", "", name.casefold())
        folded[plain.removesuffix("s") or name].append(name)
    pairs = [" and ".join(map(repr, names)) for names in folded.values() if len(names) > 1]
    if pairs:
        yield f"{_some(pairs)}: names that are nearly the same share the score between them"


def _same_texts(label_set: LabelSet) -> Iterator[str]:
    by_texts: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name, texts in zip(label_set.names, label_set.texts(), strict=False):
        if texts:
            by_texts[tuple(texts)].append(name)
    pairs = [" and ".join(map(repr, names)) for names in by_texts.values() if len(names) > 1]
    if pairs:
        yield f"{_some(pairs)}: encoded by the same texts, they always have the same score"


def _doubled_templates(label_set: LabelSet) -> Iterator[str]:
    lists = [label_set.templates, *(one.templates for one in label_set.labels)]
    doubled = {repr(one) for each in lists for one in set(each) if each.count(one) > 1}
    if doubled:
        yield f"{_some(sorted(doubled))}: a template that stands twice counts twice"


def _long(label_set: LabelSet) -> Iterator[str]:
    texts = (text for each in label_set.texts() for text in each)
    most = max(texts, key=len, default="")
    about = round(len(_WORD.findall(most)) * _TOKENS_PER_WORD) + 2  # and a beginning and an end
    about = max(about, len(most) // 10)
    if about > _MOST_TOKENS:
        yield (
            f"the longest text has about {about} tokens ({most[:40]!r}...): models read "
            f"{_MOST_TOKENS} at most (SigLIP 64) and never see the rest"
        )


def _unsigned(label_set: LabelSet) -> Iterator[str]:
    missing = [name for name in ("source", "licence") if not getattr(label_set, name)]
    if missing:
        yield f"there is no {' and no '.join(missing)}: write down where the names come from"


def _some(cases: list[str]) -> str:
    shown = ", ".join(cases[:_SHOWN])
    return shown if len(cases) <= _SHOWN else f"{shown} and {len(cases) - _SHOWN:,} more"
