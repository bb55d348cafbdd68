"""What is installed in, the licence of every dependency out: `python -m tests.licences` lists them.

Whatever `clipcap` needs, its extras and what those need in turn. A licence is what the package says
of itself; only those that ask for no more than their own text to be kept pass without a reason.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from importlib import metadata

from packaging.requirements import Requirement

_MPL = "MPL-2.0: used as it is; who changes one of its files gives that file away"
_CUDA = "NVIDIA's licence for CUDA's libraries, which torch brings; torch for CPUs has none of them"
EXCEPTED = {
    "certifi": _MPL,
    "hypothesis": f"{_MPL}; tests only",
    "orjson": _MPL,
    "pathspec": f"{_MPL}; tests only",
    "tqdm": _MPL,
    "text-unidecode": "Artistic License or GPL: taken under the first",
    "nvidia-*": _CUDA,
    "cuda-*": _CUDA,
}
"""Package to why it is taken though its licence is not on the list."""
_PERMISSIVE = re.compile(
    r"mit|mit-0|mit-cmu|bsd|0bsd|bsd[ -][23]-clause|[23]-clause bsd|apache|apache[ -]2\.0|isc|"
    r"psf-2\.0|python-2\.0|python foundation|zlib|cc0-1\.0|bsl-1\.0|hpnd|"
    r"cnri-python|unlicense|llvm-exception|dfsg approved"
)
_NOISE = re.compile(r"\((mit|iscl)\)|[(),]|\b(the|licen[cs]e|version|software)\b")


def _key(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def dependencies(root: str = "clipcap") -> Iterator[metadata.Distribution]:
    """Yield all that a package needs and that is installed, each once, sorted by name."""
    extras = metadata.metadata(root).get_all("Provides-Extra") or []
    waiting = [(root, tuple(extras))]
    seen: set[tuple[str, tuple[str, ...]]] = set()
    found: dict[str, metadata.Distribution] = {}
    while waiting:
        name, wanted = waiting.pop()
        if (_key(name), wanted) in seen:
            continue
        seen.add((_key(name), wanted))
        try:
            found[_key(name)] = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # for another system, or an extra that nobody asked for
        for text in found[_key(name)].requires or []:
            asked = Requirement(text)
            if asked.marker is None or any(
                asked.marker.evaluate({"extra": extra}) for extra in ("", *wanted)
            ):
                waiting.append((asked.name, tuple(sorted(asked.extras))))
    yield from (found[name] for name in sorted(found) if name != _key(root))


def licence(of: metadata.Distribution) -> str:
    """Return what a package says its licence is: as SPDX, by classifier, or in its own word."""
    classifiers = of.metadata.get_all("Classifier") or []
    told = [one.rpartition("::")[2].strip() for one in classifiers if one.startswith("License ::")]
    (spdx, *_), (text, *_) = (
        of.metadata.get_all(name) or [""] for name in ("License-Expression", "License")
    )
    own = text.strip().partition("\n")[0]
    return spdx or " AND ".join(told) or own or "says nothing"


def is_permissive(text: str) -> bool:
    """Tell whether every licence that is named is on the list; `OR` too needs all of them."""
    names = re.split(r"\s(?:and|or|with)\s", _NOISE.sub(" ", text.lower()))
    return all(_PERMISSIVE.fullmatch(" ".join(name.split())) for name in names)


def reason(name: str) -> str:
    """Return why a package is excepted, or ""."""
    return next((why for key, why in EXCEPTED.items() if fnmatchcase(_key(name), key)), "")


def refused(found: Sequence[metadata.Distribution]) -> list[str]:
    """Return the packages whose licence nobody has looked at."""
    return [
        f"{one.name}: {licence(one)}"
        for one in found
        if not is_permissive(licence(one)) and not reason(one.name)
    ]


def main() -> int:
    """Print a table of all; return 1 if one is refused."""
    found = list(dependencies())
    for one in found:
        why = "" if is_permissive(licence(one)) else reason(one.name) or "NOT PERMITTED"
        sys.stdout.write(f"| {one.name} | {one.version} | {licence(one)} | {why} |\n")
    return int(bool(refused(found)))


if __name__ == "__main__":
    sys.exit(main())
