"""The name of a model as a person writes it in, the folder and the digests it stands for out.

A name is `bundled`, a folder, the URL of a folder, `hf-hub:organisation/name`, one of open_clip's
published names (`ARCH/tag`), or `organisation/name` as transformers takes it. Which library loads a
model is seen from its files. No torch here: a night without work needs only names and digests.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from clipcap import hub, modelfolder, modelnames, pretrained, transformersfolder
from clipcap.errors import SettingsError
from clipcap.keys import path_name
from clipcap.modelfolder import CONFIGURATION, Parts
from clipcap.modelnames import FULL_LIST, HUB
from clipcap.settings import canonical_json, digest

BUNDLED: Final = modelnames.BUNDLED
BUNDLED_FOLDER: Final = modelnames.BUNDLED_FOLDER
BUNDLED_ENCODER_ID: Final = "clipcap-tiny-clip"
CARD: Final = "captioner.json"
LOCAL: Final = "local-dir:"


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
    loader: str = "openclip"
    """The file of `clipcap/encoders` that loads it."""

    @property
    def preprocess_json(self) -> str:
        """Return the preprocessing as canonical JSON."""
        return canonical_json(self.preprocess)

    @property
    def preprocess_sha256(self) -> str:
        """Return the digest of the preprocessing."""
        return digest(self.preprocess)


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
    return _from_bare_name(name) if published is None else _from_tag(name, published)


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
        f"No captioner {name!r}.{modelnames.did_you_mean(folder.name, [BUNDLED, *beside])} "
        f"On this machine: {', '.join(here)}. "
        "A captioner is `bundled`, or a folder that `clipcap train` wrote "
        "(OUT/captioners/NAME), or its URL."
    )


def _from_bare_name(name: str) -> EncoderRef:
    if not modelnames.may_be_repository(name):
        raise SettingsError(modelnames.unknown(name))
    try:
        return _from_hub(name, name)
    except SettingsError as error:
        if hub.snapshot(name) is not None:
            raise
        raise SettingsError(f"{modelnames.unknown(name)} {error}") from error


def _from_folder(name: str, folder: Path) -> EncoderRef:
    if not folder.is_dir():
        forms = (CONFIGURATION, transformersfolder.CONFIGURATION)
        found = [path for form in forms for path in folder.parent.glob(f"*/{form}")]
        beside = sorted({path.parent.name for path in found})
        raise SettingsError(
            f"The encoder {name!r} must be a folder, but {folder} is not there."
            f"{modelnames.did_you_mean(folder.name, beside)}"
        )
    parts = _parts(folder)
    spec = f"{LOCAL}{folder}"
    if name == BUNDLED:
        return _ref(name, BUNDLED_ENCODER_ID, parts, spec)
    state = digest([parts.weights_sha256, parts.config_sha256, parts.whole_preprocess])
    # Two folders of one name are two models, and so is a folder whose weights have changed.
    return _ref(name, path_name(f"{folder.name}-{state[:8]}"), parts, spec)


def _parts(folder: Path) -> Parts | transformersfolder.Parts:
    """Return the parts of a folder in either form; open_clip's goes first."""
    names = modelfolder.file_names(folder)
    if CONFIGURATION not in names and transformersfolder.CONFIGURATION in names:
        return transformersfolder.read(folder)
    parts = modelfolder.read(folder)
    tower = parts.model_cfg["text_cfg"].get("hf_model_name")
    if tower:  # transformers asks for its architecture by name, even beside whole weights
        hub.folder(tower, modelfolder.choose_architecture)
    return parts


def _from_hub(name: str, repository: str) -> EncoderRef:
    """Return what a repository holds; `hf-hub:` prefers open_clip's form, a bare name the other."""

    def configurations(names: list[str]) -> list[str]:
        forms = {CONFIGURATION, transformersfolder.CONFIGURATION}
        found = [one for one in names if one in forms]
        if not found:
            raise SettingsError(
                f"The repository {repository} must hold {CONFIGURATION} or config.json, but has "
                f"neither: it is no encoder of open_clip or transformers. {FULL_LIST}."
            )
        return found

    def choose(names: list[str]) -> list[str]:
        return [CONFIGURATION, modelfolder.choose_weights(names, repository)]

    folder = hub.folder(repository, configurations)
    is_other = not (folder / CONFIGURATION).is_file()
    if is_other or (not name.startswith(HUB) and transformersfolder.is_known(folder)):
        return _from_transformers(name, repository, folder)
    folder = hub.folder(repository, choose)
    model_cfg, preprocess = modelfolder.read_configuration(folder)
    weights = folder / choose(modelfolder.file_names(folder))[1]
    parts = Parts(model_cfg, preprocess, weights, _tokenizer(model_cfg))
    return _ref(name, path_name(repository), parts, f"{LOCAL}{folder}")


def _from_transformers(name: str, repository: str, folder: Path) -> EncoderRef:
    def choose(names: list[str]) -> list[str]:
        return transformersfolder.choose(names, f"The repository {repository}")

    transformersfolder.read_configuration(folder)  # before gigabytes of another kind are fetched
    folder = hub.folder(repository, choose)
    return _ref(name, path_name(repository), transformersfolder.read(folder), f"{LOCAL}{folder}")


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


def _ref(
    name: str, model_id: str, parts: Parts | transformersfolder.Parts, model_spec: str
) -> EncoderRef:
    return EncoderRef(
        name=name,
        model_id=model_id,
        model_spec=model_spec,
        tokenizer=None if parts.tokenizer is None else str(parts.tokenizer),
        weights=str(parts.weights),
        sha256=parts.weights_sha256,
        config_sha256=parts.config_sha256,
        dim=parts.dim,
        preprocess=parts.whole_preprocess,
        loader=parts.loader,
    )


def _is_folder_name(place: str) -> bool:
    return place.startswith(("/", "./", "../", "~")) or Path(place).is_dir()
