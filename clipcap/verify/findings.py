"""What a check found in, plain frozen rows out: one per problem, and the verification."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "unreadable", "schema", "footer", "fingerprint", "members", "content", "tar", "duplicate",
    "missing", "orphan", "unpublished", "published", "unknown",
]  # fmt: skip
Mode = Literal["fast", "full"]


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One thing that is not as the contract says; `place` is a path below the output.

    An `error` means that readers get wrong rows or none; a `warning` heals with the next whole run.
    """

    place: str
    kind: Kind
    message: str
    severity: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        return f"{self.severity}: {self.place}: {self.message}"


@dataclass(frozen=True, slots=True)
class Verification:
    """What was looked at, and everything that is wrong with it."""

    out: str
    mode: Mode
    objects: int
    shards: int
    images: int
    rejects: int
    problems: tuple[Problem, ...]

    @property
    def errors(self) -> tuple[Problem, ...]:
        """The problems that readers feel."""
        return tuple(found for found in self.problems if found.severity == "error")

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """The problems that the next whole run mends."""
        return tuple(found for found in self.problems if found.severity == "warning")

    @property
    def ok(self) -> bool:
        """Whether readers get what the contract promises."""
        return not self.errors

    def __str__(self) -> str:
        looked = f"{self.images} images and {self.rejects} rejects in {self.shards} shards"
        bytes_too = "every byte of the tars too" if self.mode == "full" else "the tars by size only"
        found = f"{len(self.errors)} errors, {len(self.warnings)} warnings"
        return f"{self.objects} objects checked ({looked}; {bytes_too}): {found}."
