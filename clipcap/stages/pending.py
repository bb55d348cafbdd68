"""An output and what a night wants of each shard in; what is done, and what lacks it, out.

Every night looks at every shard, but only what lacks something becomes work of a task: after years
of nights most shards are done, and a task for each would be hundreds of thousands. A look is a line
of a listing for what was published, else a small ranged read.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from clipcap import embedding, layout
from clipcap.commits import Commit, Fingerprint
from clipcap.embedding import EmbedSettings
from clipcap.footers import Footers
from clipcap.labels import bank
from clipcap.layout import Run, Shard
from clipcap.outcomes import Outcome, StageName, unchanged
from clipcap.settings import Settings
from clipcap.stages import caption, label
from clipcap.stages.caption import CaptionSettings
from clipcap.stages.label import LabelSettings

log = logging.getLogger(__name__)

STAGES: Final[tuple[StageName, ...]] = ("embed", "caption", "label")


class Wanted(Settings):
    """What every live shard shall have."""

    encoder: EmbedSettings
    """Whose embeddings: those that are wanted, or those that the others are made of."""
    embed: bool = True
    """Whether the embeddings are wanted; else they are taken as they are."""
    caption: CaptionSettings | None = None
    """Whose captions."""
    label: LabelSettings | None = None
    """Which labels."""

    @property
    def stages(self) -> tuple[StageName, ...]:
        """The stages that make what is wanted, in their order."""
        asked = (self.embed, self.caption is not None, self.label is not None)
        return tuple(stage for stage, is_asked in zip(STAGES, asked, strict=True) if is_asked)


@dataclass(slots=True)
class Looked:
    """What was found: outcomes of what is done already, and for each stage the shards to do.

    A shard that lacks its embeddings lacks what is made of them.
    """

    done: dict[StageName, list[Outcome]] = field(default_factory=dict)
    pending: dict[StageName, list[Shard]] = field(default_factory=dict)
    live: int = 0

    def any_pending(self) -> list[Shard]:
        """Return the shards for which any stage has something to do, oldest first."""
        return sorted({shard for shards in self.pending.values() for shard in shards})

    def known(self, *, without: Iterable[Shard] = ()) -> list[Outcome]:
        """Return the outcomes of what is done, but for shards of which others will tell."""
        left_out = frozenset(without)
        return [
            outcome
            for outcomes in self.done.values()
            for outcome in outcomes
            if outcome.shard not in left_out
        ]


def look(run: Run, wanted: Wanted) -> Looked:
    """Look at every live shard.

    Raises:
        SettingsError: a model, captioner or label set is not known.
        StorageError: the output cannot be read.
    """
    stages = wanted.stages
    looked = Looked({stage: [] for stage in stages}, {stage: [] for stage in stages})
    lookup = _Lookup(run, wanted)
    for shard in lookup.live:
        looked.live += 1
        found = lookup.look_up(shard)
        for stage in stages:
            if stage in found:
                looked.done[stage] += found[stage]
            else:
                looked.pending[stage].append(shard)
    counted = ", ".join(f"{stage} {len(looked.pending[stage])}" for stage in stages)
    log.info("%d live shards; to do: %s", looked.live, counted)
    return looked


class _Lookup:
    """What is the same for all shards: models by name and digest; nothing is loaded."""

    def __init__(self, run: Run, wanted: Wanted) -> None:
        self._footers, self._out = Footers(run.out), run.out
        self._manifests = self._footers.of(layout.table(run.out, "manifest"))
        self.live = sorted(self._manifests)
        self._ref = embedding.reference(wanted.encoder)
        self._embed = embedding.recipe(wanted.encoder, self._ref) if wanted.embed else ""
        asked = wanted.caption
        self._captioner = None if asked is None else caption.choose(asked, wanted.encoder)
        self._label = wanted.label
        names = wanted.label.label_sets if wanted.label else ()
        self._label_sets = [bank.load(name) for name in names]
        self._recipes: dict[str, str] = {}  # of captions, by that of the embeddings
        self._embedded = self._of(layout.embeddings, model_id=self._ref.model_id)
        self._captioned: dict[Shard, Commit] = {}
        if self._captioner is not None:
            name = self._captioner.card.captioner_id
            self._captioned = self._of(layout.captions, captioner_id=name)
        sets = (given.label_set.name for given in self._label_sets)
        self._labelled = {name: self._of(layout.labels, label_set=name) for name in sets}

    def _of(self, place: Callable[..., str], **of: str) -> dict[Shard, Commit]:
        """Return what the footers of one model's table say; `place` is where a shard's lies."""
        folder = layout.folder_of(place(self._out, Shard("", ""), **of))
        return self._footers.of(folder, self._manifests)

    def look_up(self, shard: Shard) -> dict[StageName, list[Outcome]]:
        """Return the outcomes of the stages that have nothing to do for a shard."""
        found: dict[StageName, list[Outcome]] = {}
        source = self._embedded.get(shard)
        if source is None or not self._is_embedded(shard, source, found):
            return found
        if self._captioner is not None:
            captions = self._captions(shard, source)
            found |= {"caption": [captions]} if captions else {}
        if self._label is not None:
            labels = [self._labels(shard, source, given) for given in self._label_sets]
            present = [one for one in labels if one is not None]
            found |= {"label": present} if len(present) == len(labels) else {}
        return found

    def _is_embedded(
        self, shard: Shard, source: Commit, found: dict[StageName, list[Outcome]]
    ) -> bool:
        """Tell whether the embeddings are as they must be; who takes them as they are, says yes."""
        if not self._embed:
            return True
        members = self._manifests[shard].metadata["members"]
        if source.fingerprint != Fingerprint(self._embed, members).value:
            return False
        found["embed"] = [unchanged("embed", shard, source, of=self._ref.model_id)]
        return True

    def _captions(self, shard: Shard, source: Commit) -> Outcome | None:
        chosen = self._captioner
        if chosen is None:
            return None
        recipe = self._recipes.get(source.recipe)
        if recipe is None:
            recipe = self._recipes[source.recipe] = caption.recipe(chosen, source)
        wanted = Fingerprint(recipe, source.metadata["members"], chosen.rules.text)
        name = chosen.card.captioner_id
        there = self._captioned.get(shard)
        if there is None or there.fingerprint != wanted.value:
            return None
        return unchanged("caption", shard, there, of=name)

    def _labels(self, shard: Shard, source: Commit, given: bank.Given) -> Outcome | None:
        if self._label is None or source.metadata.get("model_sha256") != self._ref.sha256:
            return None
        wanted = label.wanted(given, source, self._label)
        name = given.label_set.name
        there = self._labelled[name].get(shard)
        if there is None or there.fingerprint != wanted.value:
            return None
        return unchanged("label", shard, there, of=name)
