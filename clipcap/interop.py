"""A checkpoint of the original ClipCap in, a captioner out; and a captioner in, such a file out.

What a checkpoint does not tell (the encoder, whether its embeddings were normalised, the words) is
known of the published ones and asked for of all others.
"""

from __future__ import annotations

import os
import secrets
from collections import OrderedDict
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from pydantic import JsonValue
from torch import Tensor

from clipcap import bytepairs, captioner, checkpoints, dimensions, modelfolder, models, pretrained
from clipcap.captioner import Captioner
from clipcap.cards import Card, Choice, EncoderFit
from clipcap.dimensions import LANGUAGE_MODEL, MAPPER, Shape
from clipcap.errors import SettingsError
from clipcap.keys import path_name
from clipcap.settings import Settings

OPENAI: Final = "-quickgelu/openai"  # what open_clip calls OpenAI's weights and their QuickGELU
_DECODE: Final = Choice(name="beam", settings={"beam_size": 5, "max_tokens": 67, "stop": "."})
"""As `predict.py` of the original."""
_GPT2_WORDS: Final = 50257
_STOP_ID: Final = 13  # of the full stop among GPT-2's words
_GPT2: Final = {
    "model_type": "gpt2",
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "tie_word_embeddings": True,
}
"""What the original's GPT-2 is and a checkpoint cannot say."""
_MASKED: Final = -1e4
_LINEAR_ABOVE: Final = 10  # `predict.py`
_TIED: Final = ("transformer.wte.weight", "lm_head.weight")


class Published(NamedTuple):
    """Checkpoints that the original's authors published, all of one shape."""

    name: str
    mapper: str
    dim_clip: int
    prefix_length: int
    encoder: str
    normalized: bool

    def fits(self, shape: Shape) -> bool:
        """Tell whether a checkpoint of this shape may be one of them."""
        mine = (self.mapper, self.dim_clip, self.prefix_length)
        return mine == (shape.mapper.name, shape.dim_clip, shape.prefix_length)

    @property
    def options(self) -> str:
        """Return what to type for them."""
        return f"--encoder {self.encoder} --{'normalized' if self.normalized else 'raw'}"


PUBLISHED: Final = (
    Published(
        "COCO or Conceptual Captions MLP", "mlp", 512, 10, f"ViT-B-32{OPENAI}", normalized=False
    ),
    Published("COCO transformer", "transformer", 640, 40, f"RN50x4{OPENAI}", normalized=True),
)
PUBLISHED_STEMS: Final = (
    "coco_weights",
    "conceptual_weights",
    "transformer_weights",
    "model_wieghts",  # as the original's notebooks spell it
)


class Given(Settings):
    """What a checkpoint cannot tell."""

    encoder: str | None = None
    """The encoder it was trained for, such as `ViT-B-32-quickgelu/openai`, `RN50x4` or a folder."""
    normalized: bool | None = None
    """Whether it was trained on L2-normalised embeddings."""
    tokenizer: str | None = None
    """A folder of GPT-2's words; null looks for `gpt2` in the local cache of the hub."""
    name: str | None = None
    """The captioner's name in tables; null takes the file's."""


def read_checkpoint(file: str, given: Given) -> Captioner:
    """Return the captioner that a checkpoint of the original holds; `save` writes its folder.

    Raises:
        SettingsError: the file is none of ClipCap's, or damaged; what it does not tell was not
            given and is not known; or what was given does not fit it.
    """
    path = Path(file).expanduser()
    found = checkpoints.read(path)
    shape = found.shape
    encoder, normalized = _known(path, shape, given)
    fit = _fitting(encoder, shape.dim_clip)
    tokenizer = bytepairs.tokenizer(given.tokenizer, shape.vocabulary)
    card = Card(
        captioner_id=path_name(given.name or path.stem),
        encoder=fit,
        normalized=normalized,
        prefix_length=shape.prefix_length,
        mapper=shape.mapper,
        decode=_DECODE,
        training={"imported_from": path.name, "sha256": modelfolder.sha256(path)},
    )
    tied = torch.equal(*(found.language_model[name] for name in _TIED))
    with torch.device("meta"):  # no numbers are drawn that would be thrown away
        language_model = captioner.random_language_model(
            "gpt2", _configuration(shape, tokenizer.eos_token_id, tied=tied), seed=0
        )
    language_model.load_state_dict(found.language_model, assign=True)
    language_model.tie_weights()
    made = captioner.new(card, language_model, tokenizer, seed=0)
    made.mapper.load_state_dict(found.mapper)
    return made.eval()


def write_checkpoint(captioner: Captioner, file: str, *, buffers: bool = False) -> None:
    """Write the state dict that the original's `ClipCaptionModel` loads.

    The encoder, `normalized` and the decoder stay in the captioner's card: the file has no place
    for them. `buffers` adds the two of each layer that transformers before 4.30 wants.

    Raises:
        SettingsError: a mapper or a language model that the original does not have, other words
            than GPT-2's, a file that is there already or cannot be written.
    """
    path = Path(file).expanduser()
    if path.exists():
        raise SettingsError(f"{path} is there already. Remove it, or choose another name.")
    tensors = {f"{LANGUAGE_MODEL}{k}": t for k, t in captioner.language_model.state_dict().items()}
    tensors |= {f"{MAPPER}{k}": t for k, t in captioner.mapper.state_dict().items()}
    _require_original(captioner, tensors)
    if buffers:
        tensors |= _buffers(captioner.language_model.config)
    whole = OrderedDict((name, tensor.detach().cpu()) for name, tensor in tensors.items())
    partial = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        torch.save(whole, partial)
        partial.rename(path)
    except (OSError, RuntimeError) as error:
        raise SettingsError(f"{path} cannot be written: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def _known(path: Path, shape: Shape, given: Given) -> tuple[str, bool]:
    """Return encoder and `normalized`, given or known.

    The published shapes are also the defaults of the original's `train.py`, which takes either kind
    of embeddings: a shape alone proves nothing.
    """
    like = next((one for one in PUBLISHED if one.fits(shape)), None)
    encoder, normalized = given.encoder, given.normalized
    if like is not None and path.stem.lower() in PUBLISHED_STEMS:
        encoder = encoder or like.encoder
        normalized = like.normalized if normalized is None else normalized
    if encoder is not None and normalized is not None:
        return encoder, normalized
    lacking = [
        *(["the encoder (`--encoder`)"] if encoder is None else []),
        *(
            ["whether embeddings were normalised (`--normalized` or `--raw`)"]
            * (normalized is None)
        ),
    ]
    hint = ""
    if like is not None:
        hint = (
            f" Its shape is that of the published {like.name}: if it is that, add {like.options}."
        )
    raise SettingsError(
        f"{path} holds {shape}; it cannot tell {' and '.join(lacking)}.{hint} What the original's "
        "train.py wrote is `--raw`, unless it was run with --normalize_prefix."
    )


def encoder_fit(name: str) -> EncoderFit:
    """Return the encoder that a name stands for; a published one is not fetched for it.

    Raises:
        SettingsError: nobody knows the name.
    """
    published = pretrained.find(f"{name.replace('/', '-')}{OPENAI}") or pretrained.find(name)
    if published is not None:
        width = pretrained.configuration(published)["embed_dim"]
        return EncoderFit(model_id=path_name(published.name), dim=width)
    ref = models.encoder(name)
    return EncoderFit(
        model_id=ref.model_id,
        sha256=ref.sha256,
        preprocess_sha256=ref.preprocess_sha256,
        dim=ref.dim,
    )


def _fitting(name: str, dim: int) -> EncoderFit:
    fit = encoder_fit(name)
    if fit.dim != dim:
        raise SettingsError(
            f"The checkpoint reads embeddings of {dim} numbers, but the encoder {name} gives "
            f"{fit.dim}. Give the encoder that it was trained for."
        )
    return fit


def _configuration(shape: Shape, end_token: int, *, tied: bool) -> dict[str, JsonValue]:
    return {
        "vocab_size": shape.vocabulary,
        "n_positions": shape.positions,
        "n_embd": shape.dim_lm,
        "n_layer": shape.layers,
        "n_head": shape.heads,
        "n_inner": None if shape.hidden == 4 * shape.dim_lm else shape.hidden,
        "bos_token_id": end_token,
        "eos_token_id": end_token,
        "tie_word_embeddings": tied,
    }


def _require_original(captioner: Captioner, tensors: dict[str, Tensor]) -> None:
    """Refuse what the original's code cannot build, or would read otherwise than it was meant."""
    found: Any = captioner.language_model.config
    wrong = [
        f"its {name} is {getattr(found, name, None)}, not {value}"
        for name, value in _GPT2.items()
        if getattr(found, name, None) != value
    ]
    if wrong:
        raise SettingsError(f"The original has only GPT-2, but of this one {'; '.join(wrong)}.")
    try:
        shape = dimensions.infer(tensors)
    except SettingsError as error:
        raise SettingsError(f"The original has no such captioner: {error}") from error
    differences = dimensions.differences(tensors, shape)
    if differences:
        raise SettingsError(
            f"The original has no such captioner: of the tensors {'; '.join(differences)}."
        )
    if shape.heads != found.n_head:
        raise SettingsError(
            f"GPT-2 of width {shape.dim_lm} has {shape.heads} heads, but this one has "
            f"{found.n_head}, which the file cannot tell."
        )
    _require_mapper(captioner.card, shape)
    words = (len(captioner.tokenizer), captioner.tokenizer.encode(".", add_special_tokens=False))
    if words != (_GPT2_WORDS, [_STOP_ID]):
        raise SettingsError(
            f"The original has GPT-2's {_GPT2_WORDS} words, but this captioner has others "
            f"({words[0]}): its captions could not be read there."
        )


def _require_mapper(card: Card, shape: Shape) -> None:
    """Refuse a mapper of another form; the file tells neither heads nor ratios."""
    own = card.mapper.settings
    widths = {"mlp": {"hidden_ratio": 0.5}, "transformer": {"heads": 8, "mlp_ratio": 2.0}}
    wanted = widths.get(card.mapper.name, {})
    wrong = {name: own[name] for name, value in wanted.items() if own.get(name, value) != value}
    if card.mapper.name != shape.mapper.name or wrong:
        told = f" with {wrong}" if wrong else ""
        raise SettingsError(f"The original has no mapper like {card.mapper.name}{told}.")
    if card.mapper.name == "linear" and card.prefix_length <= _LINEAR_ABOVE:
        raise SettingsError(
            f"The original has a linear mapper for prefixes of more than {_LINEAR_ABOVE} vectors, "
            f"but this one has {card.prefix_length}."
        )


def _buffers(configuration: Any) -> dict[str, Tensor]:  # noqa: ANN401 - transformers' own types
    """Return the mask and the number that each layer of an old GPT-2 saves."""
    positions = configuration.n_positions
    mask = torch.ones(positions, positions, dtype=torch.uint8).tril().view(1, 1, positions, -1)
    return {
        f"{LANGUAGE_MODEL}transformer.h.{layer}.attn.{name}": value
        for layer in range(configuration.n_layer)
        for name, value in (("bias", mask), ("masked_bias", torch.tensor(_MASKED)))
    }
