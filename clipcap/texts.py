"""A file of sentences and an encoder's text side in, embeddings that stand for images out.

CLIP puts a text and its image near each other, but all texts beside all images (arXiv:2203.02053):
a captioner that learned from embeddings of texts meets others when it captions. So texts are moved
by the difference of the two means (arXiv:2401.08567) before they are learned from; nothing need be
done when images are captioned.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from clipcap import captionfiles, csvrows, embedding, manifest, oldpickles, storage, tables
from clipcap.errors import SettingsError
from clipcap.sample import caption_text
from clipcap.settings import digest

if TYPE_CHECKING:
    from clipcap.commits import Commit
    from clipcap.encoders import Encoder
    from clipcap.models import EncoderRef
    from clipcap.parallel import Team

_PART: Final = 4_096  # texts that are tokenised at a time
_ENOUGH: Final = 100_000  # images: the mean of more is the same
_HEADERS: Final = ("caption", "captions", "text", "sentence")


def read(url: str) -> list[str]:
    """Return the sentences of a file, each once: a line each, or those of any file of captions.

    Raises:
        SettingsError: the file is of no known form or not UTF-8, or says nothing.
        NotFoundError: there is no such file.
    """
    url = url if captionfiles.are_tars(url) else storage.canonical(url)
    found = list(dict.fromkeys(text for text in map(caption_text, _said(url)) if text))
    if not found:
        raise SettingsError(f"There must be texts to learn from, but {url} holds none.")
    return found


def _said(url: str) -> Iterable[str]:
    if captionfiles.are_tars(url):
        return _of_captions(url)
    if captionfiles.is_pickle(url):
        return [caption.text for said in oldpickles.read(url)[1] for caption in said]
    data = storage.read(url)
    if data.startswith(b"PAR1"):
        return _of_captions(url)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SettingsError(
            f"The texts in {url} must be UTF-8, but byte {error.start} is none. If they are "
            f"Latin-1: `iconv -f latin1 -t utf-8 {url.rpartition('/')[2]}`."
        ) from error
    first = text.lstrip().partition("\n")[0].strip()
    if first[:1] in ("{", "["):
        return _strings(text) or _of_captions(url)
    if captionfiles.is_known(first):
        return _of_captions(url)
    if first.lower() in _HEADERS:  # a table of nothing else
        return _column(text, url)
    return re.split(r"\r\n|\r|\n", text)


def _column(text: str, url: str) -> list[str]:
    """Return the cells of a table of one column, where a comma without quotes parts nothing."""
    try:
        return [",".join(row) for row in csvrows.cells(text)[1:]]
    except ValueError as error:
        raise SettingsError(f"The texts in {url} cannot be read as CSV: {error}.") from error


def _strings(text: str) -> list[str]:
    """Return a JSON list of strings; nothing where it is something else."""
    try:
        value: Any = json.loads(text)
    except ValueError:
        return []
    is_plain = isinstance(value, list) and all(isinstance(one, str) for one in value)
    return value if is_plain else []


def _of_captions(url: str) -> Iterable[str]:
    for _, given in captionfiles.read(url):
        for cell in given if isinstance(given, list) else [given]:
            yield "" if cell is None else str(cell)


def embedded(sentences: Sequence[str], encoder: Encoder, team: Team) -> Tensor:
    """Return the embeddings of texts as `text_ND`, L2-normalised float32 on the CPU.

    Each process of a team embeds its share.

    Raises:
        SettingsError: the encoder gives numbers that are not finite.
    """
    text_ND = torch.zeros(len(sentences), encoder.dim)
    for part_B in torch.split(team.share(torch.arange(len(sentences))), _PART):
        part = [sentences[n] for n in part_B.tolist()]
        text_ND[part_B] = functional.normalize(encoder.encode_texts(part))
    if team.size > 1:
        text_ND = text_ND.to(team.device)
        team.add([text_ND])
    if not bool(text_ND.isfinite().all()):
        raise SettingsError(f"The embeddings of texts by {encoder.model_id} are not finite.")
    return text_ND.cpu()


@dataclass(frozen=True, slots=True)
class Images:
    """The embeddings of the images of an output, or of so many that their mean is the same."""

    commits: tuple[Commit, ...]

    @property
    def fingerprints(self) -> list[str]:
        """What they were made from."""
        return [commit.fingerprint for commit in self.commits]

    def mean(self) -> Tensor:
        """Return the mean of the embeddings, `mean_D`; one shard is held at a time."""
        totals = [tables.vectors(tables.read(one.url)).sum(0, np.float64) for one in self.commits]
        rows = sum(one.rows for one in self.commits)
        return torch.tensor(np.sum(totals, 0) / rows, dtype=torch.float32)


def images(out: str, ref: EncoderRef) -> Images:
    """Return where the images of an output lie, of shards from all over it.

    Raises:
        NotFoundError: a shard is not embedded.
        SettingsError: the output has no image.
    """
    found: list[Commit] = []
    for shard in sorted(manifest.shards(out), key=lambda shard: digest(str(shard))):
        found.append(embedding.committed(shard, ref, out=out))
        if sum(one.rows for one in found) >= _ENOUGH:
            break
    if not any(one.rows for one in found):
        raise SettingsError(
            f"Texts are moved to where the images of {out} lie, but it has none: run "
            "`clipcap shard` and `clipcap embed` first, or set `train.loop.texts.shift` to none."
        )
    return Images(tuple(found))


def moved(text_ND: Tensor, mean_D: Tensor) -> Tensor:
    """Return unit vectors of texts, moved so that they lie around another mean."""
    return functional.normalize(text_ND - text_ND.mean(0) + mean_D)
