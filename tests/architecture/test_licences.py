"""Every dependency's licence is one that lets everybody use the whole, or somebody said why not."""

from __future__ import annotations

import pytest

from tests import licences
from tests.architecture.tree import ROOT


def test_every_dependency_has_a_licence_that_was_looked_at() -> None:
    found = list(licences.dependencies())
    assert len(found) > 50
    assert {"torch", "prefect", "pyarrow"} <= {one.name for one in found}
    assert licences.refused(found) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("MIT", True),
        ("Apache-2.0 WITH LLVM-exception AND BSD-2-Clause", True),
        ("Apache-2.0 OR BSD-3-Clause", True),
        ("BSD 2-Clause License", True),
        ("3-Clause BSD License", True),
        ("Python Software Foundation License", True),
        ("Apache 2.0 License", True),
        ("The MIT License (MIT)", True),
        ("MPL-2.0 AND (Apache-2.0 OR MIT)", False),
        ("GPL-3.0-or-later", False),
        ("GNU Lesser General Public License v3 (LGPLv3)", False),
        ("MIT AND AGPL-3.0", False),
        ("LicenseRef-NVIDIA-Proprietary", False),
        ("says nothing", False),
    ],
)
def test_a_licence_is_read(text: str, expected: bool) -> None:
    assert licences.is_permissive(text) is expected


def test_the_page_has_every_exception() -> None:
    page = (ROOT / "docs" / "licences.md").read_text()
    for name, why in licences.EXCEPTED.items():
        assert f"| `{name}` | {why} |" in page
