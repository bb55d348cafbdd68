"""What a label set is fitted to, and what is known of the fit: settings, and JSON in its file."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from clipcap.labels import normalising
from clipcap.labels.accepting import Accepting
from clipcap.settings import Settings
from clipcap.thresholds import Interval, ThresholdSettings


class FitSettings(Settings):
    """What a label set is fitted to, and how much it must show."""

    truth: str = ""
    """File of what people say is on images, or `folder`; empty: fitted to the collection alone."""
    precision: float | None = Field(default=None, gt=0, lt=1)
    """With truth: share of right ones among accepted labels; not given: what tells best which
    images show none of these, or the label set's own thresholds where few or none do."""
    none_rate: float = Field(default=0.2, ge=0, lt=1)
    """Without truth: share of the images that get no label, those of the lowest best score."""
    sample: int = Field(default=100_000, ge=normalising.FEWEST)
    """Most images of the collection that are looked at; fewer where there are many labels."""
    folds: int = Field(default=5, ge=2)
    """With truth: in how many parts, each judged by a fit to the others."""
    min_labelled: int = Field(default=30, ge=10)
    """With truth: fewest images."""
    thresholds: ThresholdSettings = ThresholdSettings(min_each=5, min_flagged=5)
    """With a precision: how thresholds are chosen; draws and confidence of all intervals."""


class Fit(Settings):
    """What a label set was fitted to, and what that was worth."""

    method: Literal["collection", "truth"]
    """To the collection alone, or to what people say is on some images."""
    images: int
    """Of the collection."""
    labelled: int = 0
    """Images that people said something of."""
    none: int = 0
    """Those of them that show none of these."""
    labels_seen: int = 0
    """Labels that one of them or more shows."""
    is_normalised: bool = True
    """Whether each label's level in the collection was taken from it."""
    temperature: float | None = None
    """What cosines are divided by, for a softmax."""
    right_before: float | None = None
    """Share of images whose best answer (a label, or none of these) was right, as it came."""
    right_after: float | None = None
    """The same after the fit, on images that had no part in it."""
    error_before: Interval | None = None
    """Expected calibration error as it came: of best answers, or of every image and label."""
    error_after: Interval | None = None
    """The same after the fit, on images that had no part in it."""
    error_dropped: Interval | None = None
    """The same of a fit that was worse than none, so that scores stayed as they came."""
    accepting: Accepting
    """The thresholds."""
    seed: int = 0
    """Of folds and draws."""
    fitted_on: str = ""
    """The day."""
    producer: str = ""
    """The version that did it."""
    label_set_sha256: str = ""
    """Of the label set that it began with."""
    truth_sha256: str = ""
    """Of what people said."""
