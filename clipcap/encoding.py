"""A model that looks like one of open_clip in, an encoder for every thread of a process out.

What the files of `clipcap/encoders` have in common: settings, devices, memory, one load in a
process, no request, and one sentence where the parts of a model do not fit together.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, Literal

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
Wanted = Literal["auto", "fp32", "bf16", "fp16"]
_UNFIT: Final = (  # what model libraries raise where a folder is not as they think
    *(RuntimeError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError),
    *(OSError, ImportError),
)
_LOG = logging.getLogger(__name__)


class Settings(BaseSettings):
    """Which encoder, and where it runs."""

    model: str = models.BUNDLED
    """`bundled`, a folder or its URL, `hf-hub:organisation/name`, `organisation/name` as
    transformers takes it, or a published `ARCH/tag` of open_clip."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """`auto` takes a GPU if there is one; also `cpu`, `cuda`, `cuda:1`. Changes only the speed."""
    precision: Wanted = "fp32"
    """Of the image tower. `auto` takes the fastest of the device that is within 1e-4 (1 - cosine)
    of `fp32` with this very model; a format asked for by name must be so near, too."""


class Encoder:
    """A loaded model with its own preprocessing and tokenizer; threads may share it."""

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
        if not math.isfinite(self.logit_scale + (self.logit_bias or 0)):
            raise SettingsError(
                f"The weights of {ref.name!r} must have finite numbers as `logit_scale` (a "
                "logarithm) and `logit_bias`, else no label gets a probability, but have not."
            )
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

        done = [torch.zeros(0, self.dim)]
        for at in range(0, len(texts), TEXT_BATCH):
            tokens_B = self._tokenize(list(texts[at : at + TEXT_BATCH]))
            done.append(self._at_once(self._model.encode_text, tokens_B))
        return torch.cat(done)

    def _at_once(self, encode: Callable[[Tensor], Tensor], inputs_B: Tensor) -> Tensor:
        from clipcap import forward  # noqa: PLC0415 - as above

        begin = forward.at_once(lambda part_B: encode(part_B.to(self.device)))
        return self._memory.run(begin, inputs_B)


Build = Callable[[models.EncoderRef, Wanted, "torch.device"], Encoder]
"""Loads a model whose files are all here, in the number format that is wanted, onto a device."""


class Loader:
    """Loads each encoder of a library once in a process, whichever thread asks first."""

    def __init__(self, library: str, build: Build) -> None:
        self.loads: Counter[str] = Counter()
        """How often this process has loaded each model id."""
        self._library, self._build = library, build
        self._loaded: dict[str, Encoder] = {}
        self._lock = Lock()

    def load(self, settings: Settings) -> Encoder:
        """Return the encoder.

        Raises:
            SettingsError: nobody knows the model, its parts do not fit together, or it is in the
                form of another library.
            HubError: it is not on this machine and the hub does not answer.
            DeviceError: the device is not there, or the model does not fit into it.
        """
        ref = models.encoder(settings.model)
        if ref.loader != self._library:
            raise SettingsError(
                f"The encoder {ref.name!r} must be in the form of {self._library}, but is in that "
                f"of {ref.loader}. Leave `embed.encoder` out: `auto` sees which library it needs."
            )
        device = choose_device(settings.device)
        key = digest([identity(ref, settings), str(device)])
        with self._lock:
            if key not in self._loaded:
                _LOG.info("loading encoder %s on %s", ref.model_id, device)
                self._loaded[key] = self._build(ref, settings.precision, device)
                self.loads[ref.model_id] += 1
            return self._loaded[key]

    def forget(self) -> None:
        """Let go of every loaded encoder and the memory it holds."""
        with self._lock:
            self._loaded.clear()


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


def peak_gpu_bytes(device: torch.device) -> int:
    """Return the most memory of a GPU that this process has had in use, in bytes; 0 for a CPU."""
    import torch  # noqa: PLC0415 - as above

    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


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


@contextmanager
def fitted(ref: models.EncoderRef, device: torch.device, library: str) -> Iterator[None]:
    """Ask nobody while a model is loaded, and say what is wrong with it in one sentence.

    Raises:
        SettingsError: its parts do not fit together.
        DeviceError: it does not fit into the device.
    """
    import torch  # noqa: PLC0415 - a flow reads `Settings` without it
    from huggingface_hub.errors import StrictDataclassError  # noqa: PLC0415 - as above
    from safetensors import SafetensorError  # noqa: PLC0415 - as above

    from clipcap import forward  # noqa: PLC0415 - it imports torch

    try:
        with _offline():
            yield
    except torch.OutOfMemoryError as error:
        raise DeviceError(
            f"{device} must have memory for {ref.model_id}, but has not. Free it, take "
            f"{forward.SMALLER}, or `--device cpu`."
        ) from error
    except (*_UNFIT, SafetensorError, StrictDataclassError) as error:
        raise SettingsError(
            f"The parts of the encoder {ref.name!r} must fit together, but {library} cannot load "
            f"them: {_first_line(error)}. Take configuration, weights ({ref.weights}) and "
            "tokenizer from one model."
        ) from error


@contextmanager
def _offline() -> Iterator[None]:
    """Keep the hub's libraries from any request: `models.encoder` has everything here already.

    The environment variable is read when huggingface_hub is imported, which is too early.
    """
    from huggingface_hub import constants  # noqa: PLC0415 - with the model libraries

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:300].rstrip(".") or type(error).__name__
