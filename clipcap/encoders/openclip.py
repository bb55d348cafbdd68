"""Images or texts in, raw embeddings out, with any open_clip model.

The only file that imports open_clip, and only once a model is loaded: open_clip needs seconds.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from pydantic import Field

from clipcap import models
from clipcap.errors import DeviceError, SettingsError
from clipcap.settings import Settings as BaseSettings
from clipcap.settings import digest

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor

    from clipcap.hardware import Precision

TEXT_BATCH: Final = 256  # texts of one forward: a label set has thousands with its templates
_LOG = logging.getLogger(__name__)
_Wanted = Literal["auto", "fp32", "bf16", "fp16"]
_LOCK = Lock()
_LOADED: dict[str, Encoder] = {}

loads: Counter[str] = Counter()
"""How often this process has loaded each model id."""


class Settings(BaseSettings):
    """Which encoder, and where it runs."""

    model: str = models.BUNDLED
    """`bundled`, a folder or its URL, `hf-hub:organisation/name`, or a published `ARCH/tag`."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """`auto` takes a GPU if there is one; also `cpu`, `cuda`, `cuda:1`. Changes only the speed."""
    precision: _Wanted = "fp32"
    """Of the image tower. `auto` takes the fastest of the device that is within 1e-4 (1 - cosine)
    of `fp32` with this very model; a format asked for by name must be so near, too."""


class Encoder:
    """A loaded open_clip model with its own preprocessing and tokenizer; threads may share it."""

    def __init__(
        self,
        ref: models.EncoderRef,
        model: Any,  # noqa: ANN401 - open_clip has no types
        preprocess: Callable[[Image.Image], Tensor],
        tokenize: Callable[[list[str]], Tensor],
        precision: Precision,
    ) -> None:
        import torch  # noqa: PLC0415 - a flow reads `Settings` without it

        from clipcap import cuda, forward  # noqa: PLC0415 - as above

        self.ref = ref
        self.model_id = ref.model_id
        self.dim = ref.dim
        self.sha256 = ref.sha256
        self.preprocess_json = ref.preprocess_json
        self.preprocess_sha256 = ref.preprocess_sha256
        self.precision = precision
        self.logit_scale = float(model.logit_scale.detach().float().exp())
        bias = getattr(model, "logit_bias", None)
        self.logit_bias = None if bias is None else float(bias.detach())
        self.device: torch.device = model.logit_scale.device
        self._model = model
        self._preprocess = preprocess
        self._tokenize = tokenize
        self._memory = forward.Memory(self.device, ref.model_id, ref.dim)
        scale = [ref.preprocess["mean"], ref.preprocess["std"]]
        mean_C, std_C = torch.tensor(scale, device=self.device)

        def embed(pixels_BHWC: Tensor) -> Tensor:
            found: Tensor = model.encode_image(forward.normalised(pixels_BHWC, mean_C, std_C))
            return found.float()

        on_gpu = self.device.type == "cuda"
        self._begin = cuda.Pipeline(embed, self.device).begin if on_gpu else forward.at_once(embed)

    def preprocess(self, image: Image.Image) -> Tensor:
        """Return one RGB image as the model wants it.

        Args:
            image: in RGB and turned the right way up.

        Returns:
            float32 [C, H, W], resized, cropped and normalised by the model's own configuration.
        """
        return self._preprocess(image)

    def encode_pixels(self, pixels_BHWC: Tensor) -> Callable[[], Tensor]:
        """Begin with images that are resized and cropped; return what waits for their embeddings.

        A GPU works on them in the meantime; a CPU has done so before this returns. The pixels must
        stay as they are until the returned function has been called.

        Args:
            pixels_BHWC: uint8, on the CPU.

        Returns:
            A function, to be called once, that gives raw embeddings, float32 [B, D] on the CPU.

        Raises:
            DeviceError: not even one image fits into the device's memory; also at the wait.
        """
        return self._memory.begin(self._begin, pixels_BHWC)

    def encode_images(self, images_BCHW: Tensor) -> Tensor:
        """Return raw embeddings of normalised images, float32 [B, D] on the CPU.

        Raises:
            DeviceError: not even one image fits into the device's memory.
        """
        return self._at_once(self._model.encode_image, images_BCHW)

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Return raw embeddings, float32 [B, D] on the CPU.

        Raises:
            DeviceError: not even one text fits into the device's memory.
        """
        import torch  # noqa: PLC0415 - a flow reads `Settings` without it

        if not texts:
            return torch.zeros(0, self.dim)
        parts = torch.split(self._tokenize(list(texts)), TEXT_BATCH)
        return torch.cat([self._at_once(self._model.encode_text, part_BT) for part_BT in parts])

    def _at_once(self, encode: Callable[[Tensor], Tensor], inputs_B: Tensor) -> Tensor:
        from clipcap import forward  # noqa: PLC0415 - as above

        begin = forward.at_once(lambda part_B: encode(part_B.to(self.device)))
        return self._memory.run(begin, inputs_B)


def identity(ref: models.EncoderRef, settings: Settings) -> dict[str, Any]:
    """Return what of an encoder changes its embeddings, for fingerprints.

    The device does not; nor does what `auto` has chosen on it: every choice is within 1e-4 of fp32,
    so a night on another machine goes on with the embeddings of this one.
    """
    return {
        "model_id": ref.model_id,
        "sha256": ref.sha256,
        "config_sha256": ref.config_sha256,
        "preprocess_sha256": ref.preprocess_sha256,
        "precision": settings.precision,
    }


def load(settings: Settings) -> Encoder:
    """Return the encoder, loaded once in a process whichever thread asks first.

    Raises:
        SettingsError: nobody knows the model, or its parts do not fit together.
        HubError: it is not on this machine and the hub does not answer.
        DeviceError: the device is not there, or the model does not fit into it.
    """
    ref = models.encoder(settings.model)
    device = choose_device(settings.device)
    key = digest([identity(ref, settings), str(device)])
    with _LOCK:
        if key not in _LOADED:
            _LOADED[key] = _build(ref, settings.precision, device)
            loads[ref.model_id] += 1
        return _LOADED[key]


def forget() -> None:
    """Let go of every loaded encoder and the memory it holds."""
    with _LOCK:
        _LOADED.clear()


def choose_device(wanted: str) -> torch.device:
    """Return the device for `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        DeviceError: a GPU was asked for by name and is not there.
    """
    import torch  # noqa: PLC0415 - a flow reads `Settings` without it

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "auto":
        return torch.device("cuda" if count else "cpu")
    device = torch.device(wanted)
    if device.type == "cuda" and (device.index or 0) >= count:
        raise DeviceError(
            f"The device must be there, but {wanted!r} is not: torch {torch.__version__} sees "
            f"{count or 'no'} GPU{'s' if count > 1 else ''}. Leave `--device` out, or say cpu."
        )
    return device


def _build(ref: models.EncoderRef, wanted: _Wanted, device: torch.device) -> Encoder:
    import open_clip  # noqa: PLC0415 - seconds
    import torch  # noqa: PLC0415 - as above
    from safetensors import SafetensorError  # noqa: PLC0415 - as above

    from clipcap import forward, precision, prepacked  # noqa: PLC0415 - they import torch

    local = ref.model_spec.startswith(models.LOCAL)
    _LOG.info("loading encoder %s on %s", ref.model_id, device)
    try:
        with _offline():
            model, _, preprocess = open_clip.create_model_and_transforms(
                ref.model_spec,
                pretrained=None if local else ref.weights,
                device=device,
                image_mean=ref.preprocess["mean"],
                image_std=ref.preprocess["std"],
                image_interpolation=ref.preprocess["interpolation"],
                image_resize_mode=ref.preprocess["resize_mode"],
            )
            tokenize = _tokenizer(ref)
        _require_same_preprocess(ref, model.visual.preprocess_cfg)
        model.eval().visual.to(memory_format=torch.channels_last)  # as pixels lie
        chosen = precision.apply(model, wanted, ref, device)
        prepacked.pack(model)
    except torch.OutOfMemoryError as error:
        raise DeviceError(
            f"{device} must have memory for {ref.model_id}, but has not. Free it, take "
            f"{forward.SMALLER}, or `--device cpu`."
        ) from error
    except (RuntimeError, ValueError, TypeError, KeyError, OSError, SafetensorError) as error:
        raise SettingsError(
            f"The parts of the encoder {ref.name!r} must fit together, but open_clip cannot load "
            f"them: {_first_line(error)}. Take configuration, weights ({ref.weights}) and "
            "tokenizer from one model."
        ) from error
    return Encoder(ref, model, preprocess, tokenize, chosen)


def _tokenizer(ref: models.EncoderRef) -> Callable[[list[str]], Tensor]:
    """Return what `open_clip.get_tokenizer` would, but from a folder and never with foreign code.

    By the name of a repository it asks the hub for files that the repository does not even have,
    and a configuration may tell it to run code.
    """
    import open_clip  # noqa: PLC0415 - seconds
    from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH, HFTokenizer  # noqa: PLC0415 - as above

    if ref.tokenizer is None:
        return cast("Callable[[list[str]], Tensor]", open_clip.get_tokenizer(ref.model_spec))
    text = open_clip.get_model_config(ref.model_spec)["text_cfg"]
    tokenizer = HFTokenizer(
        ref.tokenizer,
        context_length=text.get("context_length", DEFAULT_CONTEXT_LENGTH),
        tokenizer_mode=text.get("tokenizer_mode"),
        **text.get("tokenizer_kwargs", {}) | {"trust_remote_code": False},
    )
    return cast("Callable[[list[str]], Tensor]", tokenizer)


def _require_same_preprocess(ref: models.EncoderRef, loaded: dict[str, Any]) -> None:
    """Refuse a model whose preprocessing is not the one that its digest was made of."""
    size = loaded["size"]
    whole = loaded | {
        "size": list(size) if isinstance(size, tuple | list) else [size, size],
        "mean": list(loaded["mean"]),
        "std": list(loaded["std"]),
    }
    if whole != ref.preprocess:
        raise SettingsError(
            f"The preprocessing of {ref.name!r} must be {ref.preprocess}, but open_clip made "
            f"{whole} of it. Make `preprocess_cfg` in open_clip_config.json agree with `model_cfg`."
        )


@contextmanager
def _offline() -> Iterator[None]:
    """Keep the hub's libraries from any request: `models.encoder` has everything here already.

    The environment variable is read when huggingface_hub is imported, which is too early.
    """
    from huggingface_hub import constants  # noqa: PLC0415 - with open_clip

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:300].rstrip(".") or type(error).__name__
