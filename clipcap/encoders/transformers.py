"""Images or texts in, raw embeddings out, with a CLIPModel, SiglipModel or Siglip2Model.

Reads a folder alone: no request, no code of the folder, no pickle. transformers is imported once a
model is loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from clipcap import encoding, modelfolder, models
from clipcap.transformersfolder import CONFIGURATION

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor

Settings = encoding.Settings
Encoder = encoding.Encoder
identity = encoding.identity
_CLASSES: Final = {"clip": "CLIPModel", "siglip": "SiglipModel", "siglip2": "Siglip2Model"}


def _build(ref: models.EncoderRef, wanted: encoding.Wanted, device: torch.device) -> Encoder:
    import torch  # noqa: PLC0415 - a flow reads `Settings` without it

    from clipcap import languagemodels, precision, prepacked, towers  # noqa: PLC0415 - as above

    folder = Path(ref.model_spec.removeprefix(models.LOCAL))
    model_type = modelfolder.json_object(folder / CONFIGURATION)["model_type"]
    with encoding.fitted(ref, device, "transformers"), languagemodels.no_progress_bar():
        loaded = _loaded(folder, model_type)
        tokenize = _tokenizer(folder, model_type, loaded.config.text_config)
        preprocess = _preprocessing(folder, ref)
        model = towers.Model(loaded, ref.preprocess).to(device)
        model.eval().visual.to(memory_format=torch.channels_last)  # as pixels lie
        chosen = precision.apply(model, wanted, ref, device)
        prepacked.pack(model)
        _require_texts(model, tokenize, ref.dim)
    return Encoder(ref, model, preprocess, tokenize, chosen)


def _loaded(folder: Path, model_type: str) -> Any:  # noqa: ANN401 - of three classes
    """Return the model of transformers, in float32, with all of its weights."""
    import torch  # noqa: PLC0415 - as above
    import transformers  # noqa: PLC0415 - seconds

    from clipcap import languagemodels  # noqa: PLC0415 - as above

    kind = getattr(transformers, _CLASSES[model_type])
    loaded, found = kind.from_pretrained(
        str(folder),
        dtype=torch.float32,
        use_safetensors=True,
        attn_implementation="sdpa",
        **languagemodels.TOLD,
        **languagemodels.ONLY_THIS_FOLDER,
    )
    languagemodels.require_whole(f"encoder in {folder}", found)
    return loaded


def _require_texts(model: Any, tokenize: Callable[[list[str]], Tensor], dim: int) -> None:  # noqa: ANN401 - as open_clip's
    """Raise whatever is wrong with words and widths now, and not in the middle of a night."""
    import torch  # noqa: PLC0415 - as above

    with torch.inference_mode():
        found_BD = model.encode_text(tokenize(["a photo", ""]).to(model.logit_scale.device))
    if found_BD.shape != (2, dim):
        raise ValueError(f"texts get {found_BD.shape[1]} numbers, but images {dim}")


def _preprocessing(folder: Path, ref: models.EncoderRef) -> Callable[[Image.Image], Tensor]:
    """Return the folder's own image processor, for one image."""
    from transformers import AutoImageProcessor  # noqa: PLC0415 - seconds

    from clipcap import languagemodels, patches  # noqa: PLC0415 - as above

    load: Any = AutoImageProcessor.from_pretrained  # without types
    processor = load(str(folder), **languagemodels.ONLY_THIS_FOLDER)

    def preprocess(image: Image.Image) -> Tensor:
        made = processor(image, return_tensors="pt")
        found: Tensor = made["pixel_values"][0]
        if "spatial_shapes" in made:
            return patches.written(found, made["spatial_shapes"][0], ref.preprocess)
        return found

    return preprocess


def _tokenizer(
    folder: Path,
    model_type: str,
    text_config: Any,  # noqa: ANN401 - transformers' types are dynamic
) -> Callable[[list[str]], Tensor]:
    """Return the folder's tokenizer: int64 [B, 1 or 2, T], see `towers.Model.encode_text`.

    Texts are filled up as in training: SigLIP's to one length, as it looks at the last token.
    """
    import torch  # noqa: PLC0415 - as above
    from transformers import AutoTokenizer, PreTrainedTokenizerFast  # noqa: PLC0415 - seconds

    from clipcap import languagemodels  # noqa: PLC0415 - as above

    named = str(_json(folder / "tokenizer_config.json").get("tokenizer_class"))
    # Of SigLIP's tokenizer transformers has only the slow class, which needs sentencepiece.
    kind: Any = PreTrainedTokenizerFast if named.startswith("SiglipTok") else AutoTokenizer
    tokenizer = kind.from_pretrained(str(folder), **languagemodels.ONLY_THIS_FOLDER)
    if len(tokenizer) > text_config.vocab_size:
        known = f"{len(tokenizer)} tokens, but the model knows {text_config.vocab_size}"
        raise ValueError(f"the tokenizer has {known}")
    longest = min(tokenizer.model_max_length, text_config.max_position_embeddings)
    padding = "longest" if model_type == "clip" else "max_length"

    def tokenize(texts: list[str]) -> Tensor:
        found = tokenizer(
            texts, padding=padding, truncation=True, max_length=longest, return_tensors="pt"
        )
        rows = [found[name] for name in ("input_ids", "attention_mask") if name in found]
        return torch.stack(rows, dim=1)

    return tokenize


def _json(path: Path) -> dict[str, Any]:
    return modelfolder.json_object(path) if path.is_file() else {}


_LOADER = encoding.Loader("transformers", _build)
load, forget, loads = _LOADER.load, _LOADER.forget, _LOADER.loads
