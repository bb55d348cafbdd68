"""The name of a model as a person writes it in, the folder and the digests it stands for out.

A name is `bundled`, a folder, the URL of a folder, `hf-hub:organisation/name`, or one of
open_clip's published names (`ARCH/tag`). No torch here: a night without work needs only names
and digests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, Literal

from clipcap import hub, modelfolder, pretrained
from clipcap.errors import SettingsError
from clipcap.keys import path_name
from clipcap.modelfolder import CONFIGURATION, Parts
from clipcap.settings import canonical_json, digest

BUNDLED: Final = "bundled"
BUNDLED_FOLDER: Final = Path(__file__).parent / "bundled"
BUNDLED_ENCODER_ID: Final = "clipcap-tiny-clip"
CARD: Final = "captioner.json"
FULL_LIST: Final = "`clipcap models --all` prints every name"
LOCAL: Final = "local-dir:"
HUB: Final = "hf-hub:"
_SUGGESTED: Final = (
    "ViT-B-32/laion2b_s34b_b79k",
    "ViT-B-16-SigLIP/webli",
    "ViT-L-14/datacomp_xl_s13b_b90k",
)
_CUTOFF: Final = 0.5  # of difflib's likeness: below it a name is no near one


@dataclass(frozen=True, slots=True)
class EncoderRef:
    """An encoder that can be loaded without any network: every file of it is on this machine."""

    name: str
    """As the person wrote it."""
    model_id: str
    """May stand in a Hive path: letters, digits, `_`, `-` and `.`."""
    model_spec: str
    """`local-dir:FOLDER`, or an architecture of open_clip whose weights lie in `weights`."""
    tokenizer: str | None
    """The folder of the tokenizer; None: the one that open_clip brings."""
    weights: str
    """The path of the safetensors file."""
    sha256: str
    """Of the weights file."""
    config_sha256: str
    """Of the model's configuration and its tokenizer."""
    dim: int
    """D, the width of an embedding."""
    preprocess: dict[str, Any] = field(hash=False)

    @property
    def preprocess_json(self) -> str:
        """Return the preprocessing as canonical JSON."""
        return canonical_json(self.preprocess)

    @property
    def preprocess_sha256(self) -> str:
        """Return the digest of the preprocessing."""
        return digest(self.preprocess)


@dataclass(frozen=True, slots=True)
class ModelRow:
    """One line of `clipcap models`."""

    name: str
    kind: Literal["encoder", "captioner"]
    size_bytes: int | None
    on_this_machine: bool
    note: str


def encoder(name: str) -> EncoderRef:
    """Return the encoder that a name stands for, fetched first if the hub has it and answers.

    Raises:
        SettingsError: nobody knows the name, or its folder lacks a file.
        HubError: it would have to be fetched and the hub does not answer.
        StorageError: it is the URL of a folder that cannot be read.
    """
    place = name.removeprefix(LOCAL)
    if name == BUNDLED:
        return _from_folder(name, BUNDLED_FOLDER / "encoder")
    if name.startswith(HUB):
        return _from_hub(name, name.removeprefix(HUB).strip("/"))
    if "://" in place:
        return _from_folder(name, hub.fetched(place))
    if name.startswith(LOCAL) or _is_folder_name(place):
        return _from_folder(name, Path(place).expanduser().absolute())
    published = pretrained.find(name)
    if published is None:
        raise SettingsError(_unknown(name))
    return _from_tag(name, published)


def captioner_folder(name: str) -> str:
    """Return the local folder of a captioner: `bundled`, a folder, or the URL of a folder.

    Raises:
        SettingsError: there is no such captioner, or the folder has no card.
        StorageError: the URL cannot be read.
    """
    if name == BUNDLED:
        folder = BUNDLED_FOLDER / "captioner"
    elif "://" in name:
        folder = hub.fetched(name)
    else:
        folder = Path(name.removeprefix(LOCAL)).expanduser().absolute()
    if (folder / CARD).is_file():
        return str(folder)
    if folder.is_dir():
        raise SettingsError(
            f"The folder {folder} must hold {CARD} to be a captioner, but has none. "
            "`clipcap train` writes such a folder."
        )
    beside = sorted(card.parent.name for card in folder.parent.glob(f"*/{CARD}"))
    here = [BUNDLED, *(str(folder.parent / other) for other in beside)]
    raise SettingsError(
        f"No captioner {name!r}.{_did_you_mean(folder.name, [BUNDLED, *beside])} "
        f"On this machine: {', '.join(here)}. "
        "A captioner is `bundled`, or a folder that `clipcap train` wrote, or its URL."
    )


def listing(scope: Literal["here", "all"] = "here") -> list[ModelRow]:
    """Return what can be had: the bundled models, the local cache, and published names.

    Args:
        scope: `here` adds a few published names to what is on this machine, `all` every one.
    """
    scenes = "knows only the picture-book scenes it was trained on; photographs need a real model"
    bundled: tuple[Literal["encoder", "captioner"], ...] = ("encoder", "captioner")
    rows = [
        ModelRow(BUNDLED, kind, modelfolder.size_bytes(folder), folder.is_dir(), scenes)
        for kind, folder in ((kind, BUNDLED_FOLDER / kind) for kind in bundled)
    ]
    for name, cached in _cached_encoders().items():
        size = modelfolder.size_bytes(cached.folder)
        note = f"in the local cache: {cached.repository}"
        rows.append(ModelRow(name, "encoder", size, on_this_machine=True, note=note))
    listed = {row.name for row in rows}
    for name in pretrained.table() if scope == "all" else _SUGGESTED:
        if name not in listed:
            note = f"on the hub: {pretrained.table()[name].repository}"
            rows.append(ModelRow(name, "encoder", None, on_this_machine=False, note=note))
    return rows


def _from_folder(name: str, folder: Path) -> EncoderRef:
    if not folder.is_dir():
        beside = sorted(path.parent.name for path in folder.parent.glob(f"*/{CONFIGURATION}"))
        raise SettingsError(
            f"The encoder {name!r} must be a folder, but {folder} is not there."
            f"{_did_you_mean(folder.name, beside)}"
        )
    parts = modelfolder.read(folder)
    tower = parts.model_cfg["text_cfg"].get("hf_model_name")
    if tower:  # transformers asks for its architecture by name, even beside whole weights
        hub.folder(tower, modelfolder.choose_architecture)
    spec = f"{LOCAL}{folder}"
    if name == BUNDLED:
        return _ref(name, BUNDLED_ENCODER_ID, parts, spec)
    state = digest([modelfolder.sha256(parts.weights), parts.config_sha256, parts.whole_preprocess])
    # Two folders of one name are two models, and so is a folder whose weights have changed.
    return _ref(name, path_name(f"{folder.name}-{state[:8]}"), parts, spec)


def _from_hub(name: str, repository: str) -> EncoderRef:
    def choose(names: list[str]) -> list[str]:
        if CONFIGURATION not in names:
            raise SettingsError(
                f"The repository {repository} must hold {CONFIGURATION}, but has none: it is not "
                f"in open_clip's form. Take a published name; {FULL_LIST}."
            )
        return [CONFIGURATION, modelfolder.choose_weights(names, repository)]

    folder = hub.folder(repository, choose)
    model_cfg, preprocess = modelfolder.read_configuration(folder)
    weights = folder / choose(modelfolder.file_names(folder))[1]
    parts = Parts(model_cfg, preprocess, weights, _tokenizer(model_cfg))
    return _ref(name, path_name(repository), parts, f"{LOCAL}{folder}")


def _from_tag(name: str, published: pretrained.Published) -> EncoderRef:
    def choose(names: list[str]) -> list[str]:
        if published.weights:
            safe = Path(published.weights).with_suffix(".safetensors").name
            names = [other for other in names if other in (safe, published.weights)]
            names = [safe] if safe in names else names
        return [modelfolder.choose_weights(names, published.repository)]

    model_cfg = pretrained.configuration(published)
    folder = hub.folder(published.repository, choose)
    weights = folder / choose(modelfolder.file_names(folder))[0]
    parts = Parts(model_cfg, published.preprocess, weights, _tokenizer(model_cfg))
    return _ref(name, path_name(published.name), parts, published.architecture)


def _tokenizer(model_cfg: dict[str, Any]) -> Path | None:
    """Bring what the text tower needs from other repositories onto this machine."""
    text = model_cfg["text_cfg"]
    if text.get("hf_model_name"):
        hub.folder(text["hf_model_name"], modelfolder.choose_architecture)
    name = text.get("hf_tokenizer_name")
    return hub.folder(name, modelfolder.choose_tokenizer) if name else None


def _ref(name: str, model_id: str, parts: Parts, model_spec: str) -> EncoderRef:
    return EncoderRef(
        name=name,
        model_id=model_id,
        model_spec=model_spec,
        tokenizer=None if parts.tokenizer is None else str(parts.tokenizer),
        weights=str(parts.weights),
        sha256=modelfolder.sha256(parts.weights),
        config_sha256=parts.config_sha256,
        dim=int(parts.model_cfg["embed_dim"]),
        preprocess=parts.whole_preprocess,
    )


def _cached_encoders() -> dict[str, hub.Cached]:
    """Return the cache's usable encoders by the names to write for them."""
    published: dict[str, list[str]] = {}
    for entry in pretrained.table().values():
        published.setdefault(entry.repository, []).append(entry.name)
    found = {}
    for cached in hub.cached():
        names = modelfolder.file_names(cached.folder)
        safe = any(name.endswith(".safetensors") for name in names)
        if safe and (CONFIGURATION in names or cached.repository in published):
            first = published.get(cached.repository, [f"{HUB}{cached.repository}"])[0]
            found[first] = cached
    return found


def _is_folder_name(place: str) -> bool:
    return place.startswith(("/", "./", "../", "~")) or Path(place).is_dir()


def _unknown(name: str) -> str:
    """Return the sentence for an encoder that nobody knows: nearest first, then this machine's."""
    published = list(pretrained.table())
    same = [other for other in published if other.lower().startswith(f"{name.lower()}/")]
    here = [BUNDLED, *_cached_encoders()]
    return (
        f"No encoder {name!r}.{_did_you_mean(name, [*here, *published], same)} "
        f"On this machine: {', '.join(here)}. {FULL_LIST}; a folder and hf-hub:organisation/name "
        "are names too."
    )


def _did_you_mean(name: str, known: Sequence[str], first: Sequence[str] = ()) -> str:
    lower = {other.lower(): other for other in reversed(known)}
    near = [lower[found] for found in get_close_matches(name.lower(), lower, n=3, cutoff=_CUTOFF)]
    best = list(dict.fromkeys([*first, *near]))[:3]
    return f" Did you mean {' or '.join(best)}?" if best else ""
