"""An output in, the files that explain it to its readers out.

README, contract, views and Croissant metadata depend on the contract alone, so that writing them
again changes nothing.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Literal

from clipcap import layout, storage
from clipcap.errors import NotFoundError
from clipcap.front import contract, croissant, views

FileName = Literal["README.md", "contract.json", "views.sql", "croissant.json"]


@cache
def files() -> dict[FileName, bytes]:
    """Return the files by name."""
    readme = (contract.FOLDER / "README.md").read_text(encoding="utf-8")
    return {
        "README.md": readme.encode(),
        "contract.json": _json(contract.contract()),
        "views.sql": views.views().encode(),
        "croissant.json": _json(croissant.croissant()),
    }


def write(out: str) -> None:
    """Write what is not there yet or says something else."""
    for name, data in files().items():
        url = layout.front(out, name)
        try:
            standing = storage.read(url)
        except NotFoundError:
            standing = b""
        if standing != data:
            storage.write(url, data)


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()
