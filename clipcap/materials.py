"""An embedded output, captions and texts in, everything that a captioner learns from out.

Reads no more than tables and files until the embeddings are asked for: a training that was done
already needs no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from clipcap import embedding, pairs, tables
from clipcap.cards import EncoderFit
from clipcap.embedding import EmbedSettings, Speed
from clipcap.errors import SettingsError
from clipcap.pairs import Embeddings

if TYPE_CHECKING:
    from torch import Tensor

    from clipcap.parallel import Team
    from clipcap.texts import Images

NO_CAPTIONS: Final = "none"


@dataclass(frozen=True, slots=True)
class Given:
    """The files that a person gives to learn from."""

    captions: str = ""
    """A file of captions, empty for those that the images came with, or `none`."""
    embeddings: Embeddings = "stored"
    """Of the output, or of the file of captions."""
    texts: str = ""
    """A file of texts without images, or empty."""
    is_moved: bool = False
    """Whether texts are moved to where the images of the output lie."""


@dataclass(frozen=True, slots=True)
class Materials:
    """Images with captions, then texts without images."""

    encoder: EmbedSettings
    fit: EncoderFit
    recipe: str
    """Digest of what made the embeddings."""
    found: pa.Table
    """Images with captions, as `pairs.Pairs.table`."""
    unmatched: int = 0
    """Captions of the file whose image the output does not have."""
    blank: int = 0
    """Captions of the file that say nothing."""
    texts: Sequence[str] = ()
    around: Images | None = None
    """The images that texts are moved to; None where they stay."""

    def captions(self) -> list[list[str]]:
        """Return what is said of each row of the embeddings."""
        return [*self.found["reference_captions"].to_pylist(), *([text] for text in self.texts)]

    def identity(self) -> list[Any]:
        """Return what makes the materials what they are, for a fingerprint."""
        names = ("image_id", "content_sha256", "reference_captions")
        images = [self.found[name].to_pylist() for name in names]
        if not self.texts:
            return [images]
        return [images, list(self.texts), self.around.fingerprints if self.around else None]

    def require(self, *, views: int, normalized: bool) -> None:
        """Refuse what texts alone cannot give, so that nothing is left out in silence.

        Raises:
            SettingsError: there are only texts, but views or lengths of images are asked for.
        """
        if self.found.num_rows or (normalized and not views):
            return
        problem = "`normalized: false` needs the lengths of images' embeddings. Set it to true"
        if views:
            problem = f"`views` ({views}) are made of images. Set `views: 0`"
        raise SettingsError(f"{problem}: there are texts to learn from, but no captions of images.")

    def embeddings(self, team: Team) -> tuple[Tensor, Tensor]:
        """Return `embedding_ND` as the table has them, and `norm_N`; texts are embedded here."""
        import torch  # noqa: PLC0415 - a training that is done needs none

        image_ND = torch.tensor(tables.vectors(self.found))
        norm_N = torch.tensor(self.found["embedding_norm"].to_numpy())
        if not self.texts:
            return image_ND, norm_N
        from clipcap import texts  # noqa: PLC0415 - as above

        encoder = embedding.load(self.encoder, Speed(device=str(team.device)))
        text_ND = texts.embedded(self.texts, encoder, team)
        if self.around is not None:
            text_ND = texts.moved(text_ND, self.around.mean())
        length = float(norm_N.mean()) if len(norm_N) else 1.0  # as images have, where it counts
        text_norm_N = torch.full((len(text_ND),), length)
        return torch.cat((image_ND, text_ND)), torch.cat((norm_N, text_norm_N))


def gather(
    out: str,
    encoder: EmbedSettings,
    given: Given,
) -> Materials:
    """Return what a captioner of an output learns from.

    Args:
        out: the output's canonical URL.
        encoder: whose embeddings.
        given: the files.

    Raises:
        SettingsError: there is nothing to learn from, or a file that cannot be read.
        NotFoundError: an image is not embedded, or a file is not there.
    """
    alone = given.captions == NO_CAPTIONS
    if alone and not given.texts:
        raise SettingsError(
            "Without captions of images there must be texts to learn from, but none are given: "
            "`clipcap train OUT --captions none --texts FILE`."
        )
    file = "" if alone else given.captions
    read = pairs.gather(
        out, encoder, file, given.embeddings, may_be_none=bool(given.texts) and not file
    )
    found = read.table[:0] if alone else read.table
    made = Materials(encoder, read.fit, read.recipe, found, read.unmatched, read.blank)
    if not given.texts:
        return made
    from clipcap import texts  # noqa: PLC0415 - as above

    around = texts.images(out, embedding.reference(encoder)) if given.is_moved else None
    return replace(made, texts=texts.read(given.texts), around=around)
