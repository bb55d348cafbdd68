"""A folder of GPT-2's words in, a tokenizer of transformers out; nothing is fetched.

The two files are OpenAI's (`encoder.json`, `vocab.bpe`) or the same ones as transformers names them
(`vocab.json`, `merges.txt`); a folder with `tokenizer.json` is read by transformers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from transformers import AutoTokenizer, GPT2Tokenizer

from clipcap import hub
from clipcap.errors import SettingsError

END: Final = "<|endoftext|>"
_REPOSITORIES: Final = ("gpt2", "openai-community/gpt2")
_PAIRS: Final = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
_WHOLE: Final = "tokenizer.json"


def tokenizer(folder: str | None, vocabulary: int) -> Any:  # noqa: ANN401 - transformers' own types
    """Return the tokenizer of a folder, or of `gpt2` in the local cache for None.

    Raises:
        SettingsError: it is not there, cannot be read, has another number of words than
            `vocabulary`, or no end token.
    """
    place = _cached() if folder is None else Path(folder).expanduser()
    pair = next((one for one in _PAIRS if all((place / name).is_file() for name in one)), None)
    if (place / _WHOLE).is_file():
        found = _whole(place)
    elif pair is not None:
        found = _of_pair(*(place / name for name in pair))
    else:
        raise SettingsError(
            f"The folder {place} must hold a tokenizer (vocab.json and merges.txt, encoder.json "
            f"and vocab.bpe, or {_WHOLE}), but does not."
        )
    if len(found) != vocabulary:
        raise SettingsError(
            f"The language model has {vocabulary} words, but the tokenizer in {place} has "
            f"{len(found)}: it belongs to another one."
        )
    if found.eos_token_id is None:
        raise SettingsError(f"The tokenizer in {place} has no end token ({END}).")
    return found


def _cached() -> Path:
    for repository in _REPOSITORIES:
        found = hub.snapshot(repository)
        if found is not None and any(path.suffix == ".json" for path in found.iterdir()):
            return found
    raise SettingsError(
        f"A checkpoint holds no words, and gpt2 is not in the local cache ({hub.cache()}). Give "
        "`--tokenizer FOLDER` with GPT-2's vocab.json and merges.txt; with a network, "
        "`hf download gpt2 vocab.json merges.txt --local-dir FOLDER` fetches them."
    )


def _whole(folder: Path) -> Any:  # noqa: ANN401 - as above
    try:
        return AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise SettingsError(f"The tokenizer in {folder} cannot be read: {error}") from error


def _of_pair(words: Path, merges: Path) -> Any:  # noqa: ANN401 - as above
    try:
        vocabulary = json.loads(words.read_text(encoding="utf-8"))
        lines = merges.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise SettingsError(f"{words} and {merges} cannot be read: {error}") from error
    known = isinstance(vocabulary, dict) and END in vocabulary
    if not known or sorted(map(repr, vocabulary.values())) != sorted(
        map(repr, range(len(vocabulary)))
    ):
        raise SettingsError(
            f"{words} must give each word a number from 0, {END} too, but does not."
        )
    pairs: Any = [tuple(line.split(" ")) for line in lines if line and line[:8] != "#version"]
    unknown = [
        pair
        for pair in pairs
        if len(pair) != 2 or any(word not in vocabulary for word in (*pair, "".join(pair)))
    ]
    if unknown:
        raise SettingsError(
            f"{merges} joins what {words.name} does not have: {' '.join(unknown[0])!r} "
            f"({len(unknown)} such lines). The two files belong to different models."
        )
    return GPT2Tokenizer(vocab=vocabulary, merges=pairs)
