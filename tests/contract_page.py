"""The contract in, `docs/contract.md` out: what stands above its first table is kept."""

from __future__ import annotations

from pathlib import Path

from clipcap.front import contract

PAGE = Path(__file__).parents[1] / "docs" / "contract.md"


def write() -> None:
    """Write the tables again below the page's own words."""
    head = PAGE.read_text(encoding="utf-8").partition("\n## manifest\n")[0]
    PAGE.write_text(f"{head}\n{contract.page()}", encoding="utf-8")


if __name__ == "__main__":
    write()
