"""A captioner folder in, captions from stored embeddings out: mapper plus language model.

The language model is any transformers causal one with its tokenizer; weights are safetensors only
and no code from a folder ever runs.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from clipcap import graphs, prepacked, registry, sequences, storage, trees, wording
from clipcap.candidates import SLOTS, Candidate
from clipcap.cards import (
    CARD_NAME,
    LANGUAGE_MODEL_NAME,
    MAPPER_NAME,
    Card,
    Choice,
    choose,
    read_card,
    write_card,
)
from clipcap.errors import NotFoundError, SettingsError
from clipcap.languagemodels import load_language_model as load_language_model
from clipcap.languagemodels import local_folder, no_progress_bar
from clipcap.languagemodels import random_language_model as random_language_model
from clipcap.trees import Tree

_LOG = logging.getLogger(__name__)


class Captioner:
    """A mapper, a language model and its tokenizer, with the card that says what they are."""

    def __init__(self, card: Card, mapper: nn.Module, language_model: Any, tokenizer: Any) -> None:  # noqa: ANN401 - transformers' own types are dynamic
        """Take ready parts; `load` and `new` make them."""
        self.card = card
        self.mapper = mapper
        self.language_model = language_model
        self.tokenizer = tokenizer
        self._takes_trees: bool | None = None
        self._trees = graphs.Kept()

    @property
    def device(self) -> torch.device:
        """Where the language model lies."""
        return cast("torch.device", self.language_model.device)

    def to(self, device: str | torch.device) -> Captioner:
        """Move mapper and language model."""
        self.mapper.to(device)
        self.language_model.to(device)
        return self

    def eval(self) -> Captioner:
        """Turn dropout off."""
        self.mapper.eval()
        self.language_model.eval()
        return self

    def for_captions(self, precision: prepacked.Format) -> Captioner:
        """Make the language model as fast as it gets here; it can be trained or saved no more.

        Lower precision changes captions where two words are nearly as likely.
        """
        self.eval().language_model.requires_grad_(requires_grad=False)
        if precision == "int8":  # to be found out in numbers that hide no difference
            self._takes_trees = trees.takes_trees(self.language_model)
        prepacked.lower(self.language_model, precision)
        return self

    def prefix(self, embedding_BD: Tensor) -> Tensor:
        """Return `prefix_BPE` for embeddings in the mapper's own scale (`card.normalized`)."""
        prefix_BPE: Tensor = self.mapper(embedding_BD.to(self.device))
        return prefix_BPE.to(self.language_model.dtype)

    def caption(
        self,
        embedding_BD: Tensor,
        norm_B: Tensor | None = None,
        *,
        decode: Choice | None = None,
        slots: int = SLOTS,
    ) -> list[list[Candidate]]:
        """Caption B stored (L2-normalised) embeddings; candidates of each best first.

        `norm_B` is the table's `embedding_norm`, needed where the card says `normalized: false`.
        `decode` takes the place of the card's own choice. `slots` images are read at a time.

        Raises:
            SettingsError: wrong width, numbers that are not finite (given or found), a norm that is
                missing, an unknown decoder or a setting it does not have.
        """
        choice = decode or self.card.decode
        decoder = registry.load("clipcap.decoders", choice.name)
        settings = choose(decoder, "decoder", choice)
        self.eval()
        with torch.inference_mode():
            prefix_BPE = self.prefix(self.scaled(embedding_BD, norm_B))
            found: list[list[Candidate]] = decoder.decode(
                self, prefix_BPE, settings, slots=slots, seeds=sequences.seeds(embedding_BD)
            )
        lost = sum(not any(isfinite(one.logprob_mean) for one in one_K) for one_K in found)
        if lost:
            raise SettingsError(
                f"{self.card.captioner_id} must give numbers, but gave none for {lost} of "
                f"{len(found)} images: its weights hold NaN, or are too large for `fp16` (try "
                "`bf16` or `fp32`)."
            )
        return found

    def scaled(self, embedding_BD: Tensor, norm_B: Tensor | None) -> Tensor:
        """Return stored embeddings in the mapper's scale: as they are, or times their norm."""
        require_embeddings(embedding_BD, self.card.encoder.dim)
        embedding_BD = embedding_BD.float()
        if self.card.normalized:
            return embedding_BD
        if norm_B is None:
            raise SettingsError(
                f"The captioner {self.card.captioner_id} reads raw embeddings, but was given "
                "normalised ones without `embedding_norm`."
            )
        return embedding_BD * norm_B.float()[:, None]

    def stop_token(self, stop: str | None) -> int:
        """Return the token of a stop text, or the tokenizer's end token for None.

        Raises:
            SettingsError: the stop text is not one known token, or there is no end token.
        """
        return wording.stop_token(self.tokenizer, stop)

    def text(self, token_ids: Sequence[int]) -> str:
        """Return the text of some tokens, special ones left out."""
        return cast("str", self.tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def spellings(self, word: str) -> list[tuple[int, ...]]:
        """Return the tokens of a word at the start and inside of a text, large and small.

        Raises:
            SettingsError: the language model has no token for it.
        """
        return wording.spellings(self.tokenizer, word)

    def continuations(self) -> tuple[str, ...]:
        """Return what each token adds to a text behind a letter."""
        size = self.language_model.get_input_embeddings().num_embeddings
        return wording.continuations(self.tokenizer, size)

    def tree(self, beams: int, max_tokens: int, slots: int) -> Tree:
        """Return an empty tree for captions of at most so many tokens.

        Raises:
            SettingsError: prefix and tokens are longer than the language model can read.
        """
        self.require_room(max_tokens)
        is_tree = self.reads_trees
        return self._trees.tree(self.language_model, beams, slots, takes_trees=is_tree)

    @property
    def reads_trees(self) -> bool:
        """Whether the language model reads a tree as it reads rows; tried out once."""
        if self._takes_trees is None:
            self._takes_trees = trees.takes_trees(self.language_model)
            if not self._takes_trees:
                _LOG.info("%s: continuations are read as rows: slower", self.card.captioner_id)
        return self._takes_trees

    def require_room(self, max_tokens: int) -> None:
        """Raise `SettingsError` if the language model has no positions for so many tokens."""
        room = getattr(self.language_model.config, "max_position_embeddings", None)
        longest = max_tokens - 1 + self.card.prefix_length  # the last token is never read
        if room is not None and longest > room:
            raise SettingsError(
                f"`max_tokens` must be at most {room - self.card.prefix_length + 1} with this "
                f"language model ({room} positions, prefix length {self.card.prefix_length}), "
                f"but is {max_tokens} instead."
            )

    def save(self, folder: str) -> None:
        """Write the folder that `load` reads; the card comes last and makes it count.

        Raises:
            SettingsError: the folder is not on this machine, or `for_captions` was called.
        """
        path = local_folder(folder)
        if any(isinstance(layer, prepacked.Packed) for layer in self.language_model.modules()):
            raise SettingsError(f"{self.card.captioner_id} was made for captions: load it anew.")
        language_model_path = path / LANGUAGE_MODEL_NAME
        with no_progress_bar():
            self.language_model.save_pretrained(language_model_path)
        self.tokenizer.save_pretrained(language_model_path)
        for file in language_model_path.glob("*.safetensors"):
            file.chmod(0o644)  # safetensors writes them for the owner alone
        tensors = {name: t.detach().contiguous() for name, t in self.mapper.state_dict().items()}
        storage.write(f"{storage.canonical(folder)}/{MAPPER_NAME}", save_tensors(tensors))
        write_card(folder, self.card)

    def write(self, folder: str) -> None:
        """Write the same folder at any address, its card last; for a store it is made here first.

        Raises:
            SettingsError: `for_captions` was called.
        """
        if storage.local_path(folder) is not None:
            self.save(folder)
            return
        with tempfile.TemporaryDirectory() as here:
            self.save(here)
            files = sorted(path for path in Path(here).rglob("*") if path.is_file())
            for path in sorted(files, key=lambda path: path.name == CARD_NAME):
                storage.write(f"{folder}/{path.relative_to(here).as_posix()}", path.read_bytes())


def load(folder: str, device: str = "cpu") -> Captioner:
    """Read a captioner folder.

    Raises:
        SettingsError: a part is missing, or the parts do not fit each other.
    """
    card = read_card(folder)
    _LOG.info("loading captioner %s on %s", card.captioner_id, device)
    language_model, tokenizer = load_language_model(str(local_folder(folder) / LANGUAGE_MODEL_NAME))
    captioner = new(card, language_model, tokenizer, seed=0)
    url = f"{storage.canonical(folder)}/{MAPPER_NAME}"
    try:
        captioner.mapper.load_state_dict(load_tensors(storage.read(url)))
    except NotFoundError as error:
        raise SettingsError(f"The captioner folder {folder} lacks {MAPPER_NAME}.") from error
    except (SafetensorError, RuntimeError) as error:
        raise SettingsError(
            f"{url} does not hold the weights of the mapper that the card describes "
            f"({card.mapper.name}, D={card.encoder.dim}, P={card.prefix_length}): {error}"
        ) from error
    return captioner.to(device).eval()


def new(card: Card, language_model: Any, tokenizer: Any, *, seed: int) -> Captioner:  # noqa: ANN401 - transformers' own types are dynamic
    """Return a captioner with a random mapper, as the card describes it, on the CPU.

    Raises:
        SettingsError: an unknown mapper, or a setting that it does not have.
    """
    module = registry.load("clipcap.mappers", card.mapper.name)
    settings = choose(module, "mapper", card.mapper)
    dim_lm = language_model.get_input_embeddings().weight.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mapper = module.Mapper(settings, card.encoder.dim, card.prefix_length, dim_lm)
    return Captioner(card, mapper, language_model, tokenizer)


def require_embeddings(embedding_BD: Tensor, dim: int) -> None:
    """Raise `SettingsError` unless there are B rows of `dim` finite numbers."""
    if embedding_BD.ndim != 2 or embedding_BD.shape[1] != dim:
        raise SettingsError(
            f"Embeddings must be B rows of {dim} numbers, "
            f"but are {tuple(embedding_BD.shape)} instead."
        )
    finite_B = embedding_BD.isfinite().all(1)
    if not bool(finite_B.all()):
        rows = (~finite_B).nonzero().flatten()
        raise SettingsError(
            f"Embeddings must be finite, but {len(rows)} of {len(finite_B)} rows hold NaN or "
            f"infinity instead (row {int(rows[0])} first). Embed those images again."
        )
