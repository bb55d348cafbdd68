"""The stored embeddings of an output and a label set in, a label set fitted to them out."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import numpy as np

from clipcap import commits, embedding, tables
from clipcap.embedding import EmbedSettings
from clipcap.errors import SettingsError
from clipcap.labels import bank, fitted, truth
from clipcap.labels.bank import Bank, Given
from clipcap.labels.fits import Fit, FitSettings
from clipcap.labels.fitted import Fitted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from clipcap.commits import Commit

    Floats = NDArray[np.float32]

_NUMBERS: Final = 20_000_000  # similarities of the sample that are held: 80 MB, a few times over
_LEAST: Final = 1_000  # images of the sample, however many labels there are
_SHARDS: Final = 256  # the sample is from so many, evenly from all


def fit(out: str, label_set: str, *, settings: FitSettings, encoder: EmbedSettings) -> Fitted[Fit]:
    """Fit a label set to the images of an output; reads no image and writes nothing.

    Args:
        out: the canonical URL of the output.
        label_set: bundled name, path or URL; of words, or fitted before.
        settings: what it is fitted to, and how much that must show.
        encoder: whose embeddings.

    Raises:
        SettingsError: too many labels, too few or all the same images, and whatever else cannot
            be fitted to.
        NotFoundError: a shard is not embedded, or there is no truth file.
    """
    given = bank.load(label_set)
    commits_S = list(embedding.of_output(out, embedding.reference(encoder)).values())
    came = bank.of(given, commits_S[0], out=out, encoder=encoder, to_fit=True)
    sample_MD = _sample(commits_S, _most(came, settings))
    from clipcap.labels import fitting

    if not settings.truth:
        made, found = fitting.to_collection(came, sample_MD, settings)
        return Fitted(*_signed(made, found, given, commits_S[0], ""))
    said = truth.read(settings.truth, out, given.label_set)
    labelled = fitted.labelled(commits_S, said.image_ids, said.labels_N)
    made, found = fitting.to_truth(came, sample_MD, labelled, settings)
    return Fitted(
        *_signed(made, found, given, commits_S[0], said.sha256),
        missing_images=said.missing_images + labelled.missing,
        unknown_labels=len(said.unknown_labels),
    )


def _most(came: Bank, settings: FitSettings) -> int:
    labels = len(came.vector_CD)
    if labels * _LEAST > _NUMBERS:
        raise SettingsError(
            f"A label set that is fitted may have {_NUMBERS // _LEAST:,} labels, but "
            f"{came.label_set.name} has {labels:,}."
        )
    return min(settings.sample, _NUMBERS // labels)


def _sample(commits_S: Sequence[Commit], most: int) -> Floats:
    """Return the embeddings of as many images, evenly from shards: the lowest `image_id` of each.

    An `image_id` is a digest, so the lowest ones are a sample as good as any.
    """
    if len(commits_S) > _SHARDS:
        commits_S = [commits_S[at * len(commits_S) // _SHARDS] for at in range(_SHARDS)]
    parts = []
    left, rows_S = most, sorted((one.rows, n) for n, one in enumerate(commits_S))
    for done, (_, n) in enumerate(rows_S):  # small shards first: what they lack others give
        quota = -(-left // (len(rows_S) - done))
        table = tables.read(commits_S[n].url, ["image_id", "embedding"])
        part_BD = tables.vectors(table.sort_by("image_id").slice(0, min(quota, left)))
        left -= len(part_BD)
        parts.append(part_BD)
    return np.concatenate(parts)


def _signed(
    made: Bank, found: Fit, given: Given, source: Commit, truth_sha256: str
) -> tuple[Bank, Fit]:
    """Return a bank that says of which weights it is, and its fit that says by whom and when."""
    signed = found.model_copy(
        update={
            "fitted_on": datetime.now(UTC).date().isoformat(),
            "producer": commits.PRODUCER,
            "label_set_sha256": given.sha256,
            "truth_sha256": truth_sha256,
        }
    )
    whole = replace(
        made,
        model_id=source.metadata["model_id"],
        model_sha256=source.metadata["model_sha256"],
        fit=signed.model_dump_json(),
    )
    return whole, signed
