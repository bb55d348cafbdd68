"""A folder in, a transformers causal language model and its tokenizer out, whole or not at all.

Weights are safetensors only and no code from a folder ever runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from pydantic import JsonValue
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from clipcap import storage
from clipcap.errors import SettingsError

ONLY_THIS_FOLDER: Final = {"local_files_only": True, "trust_remote_code": False}
TOLD: Final = {"output_loading_info": True, "ignore_mismatched_sizes": True}  # refused by us
_SHOWN: Final = 5  # names in an error


def load_language_model(folder: str) -> tuple[Any, Any]:
    """Read a transformers causal language model and its tokenizer from a folder, in float32.

    Raises:
        SettingsError: the folder lacks a part or some weights, or holds weights that are not
            safetensors.
    """
    path = local_folder(folder)
    if not (path / "config.json").is_file():
        raise SettingsError(f"{path} is not a language model folder: config.json is missing.")
    if not list(path.glob("*.safetensors")):
        raise SettingsError(
            f"{path} holds no *.safetensors; other weight formats can run code and are refused. "
            "Save the model again with transformers' `save_pretrained`."
        )
    try:
        with no_progress_bar():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                str(path), dtype=torch.float32, use_safetensors=True, **TOLD, **ONLY_THIS_FOLDER
            )
        tokenizer = AutoTokenizer.from_pretrained(str(path), **ONLY_THIS_FOLDER)
    except (OSError, ValueError, SafetensorError) as error:
        raise SettingsError(f"The language model in {path} cannot be read: {error}") from error
    language_model, found = loaded
    require_whole(f"language model in {path}", found)
    language_model.config.pad_token_id = None  # nothing is padded; else transformers warns
    return language_model.train(mode=False), tokenizer


def require_whole(what: str, found: Mapping[str, Any]) -> None:
    """Refuse weights that transformers would draw at random; a head tied to the words is none.

    Args:
        what: the model, for the error.
        found: what transformers told of loading it (`output_loading_info`).

    Raises:
        SettingsError: some are missing, or of another shape.
    """
    random = sorted({*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])})
    if random:
        raise SettingsError(
            f"The {what} must hold all weights of its config.json, but "
            f"{len(random)} are missing or of another shape: {', '.join(random[:_SHOWN])}. Save "
            "the whole model again with transformers' `save_pretrained`."
        )


def random_language_model(model_type: str, shape: Mapping[str, JsonValue], *, seed: int) -> Any:  # noqa: ANN401 - transformers' own types are dynamic
    """Return a causal language model with random weights, to be trained from scratch.

    `model_type` and `shape` are transformers' own: `"gpt2"`, `{"vocab_size": 120, ...}`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = AutoConfig.for_model(model_type, **shape)
        return AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, dtype=torch.float32
        )


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """Keep transformers from drawing a bar for each file."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def local_folder(folder: str) -> Path:
    """Return a folder of this machine as a path.

    Raises:
        SettingsError: it lies elsewhere.
    """
    path = storage.local_path(folder)
    if path is None:
        raise SettingsError(
            f"A captioner must lie on this machine, but {folder} does not. Copy it."
        )
    return path
