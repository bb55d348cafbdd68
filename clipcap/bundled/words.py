"""Nothing in, the bundled model's words, sentences and tokenizer folders out.

One word is one token. A word that is not in the list becomes `<unk>`, so that any label set can be
tried, though the model understands only the words that its scenes were described with.
"""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from clipcap.bundled.scenes import PLURALS
from clipcap.bundled.shapes import COLOURS, PLACES, THINGS

PAD, UNKNOWN, START, END = "<pad>", "<unk>", "<start>", "<end>"

CLIP_CONTEXT = 16
"""Tokens that the text tower reads; the longest caption has 14 with start and end."""

THING_TEMPLATES = (
    "a picture of a {}.", "a drawing of a {}.", "a scene with a {}.", "there is a {} here.",
    "this is a {}.", "a {}.",
)  # fmt: skip
"""What stands around the name of a thing in label sets; the model is trained with the same ones."""

PLACE_TEMPLATES = (
    "a picture {}.", "a drawing {}.", "a scene {}.", "this is {}.", "something {}.", "{}.",
)  # fmt: skip
"""What stands around the name of a place in label sets; the model is trained with the same ones."""

_GRAMMAR = "a an and one two three the of is in on at to with there here this something some"
_TALK = "picture drawing scene photo image showing"


def vocabulary() -> list[str]:
    """Every token in the order of its number: `<pad>` is 0, `<end>` the last."""
    words = " ".join([_GRAMMAR, _TALK, *THINGS, *PLURALS.values(), *COLOURS, *PLACES])
    return [PAD, UNKNOWN, ".", ",", *dict.fromkeys(words.split()), START, END]


def tokenizer(*, for_clip: bool) -> PreTrainedTokenizerFast:
    """Make the tokenizer: `<start>` and `<end>` around each text for CLIP, nothing for GPT-2."""
    number = {word: index for index, word in enumerate(vocabulary())}
    inner = Tokenizer(models.WordLevel(number, unk_token=UNKNOWN))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    if for_clip:
        inner.post_processor = processors.TemplateProcessing(
            single=f"{START} $A {END}",
            special_tokens=[(START, number[START]), (END, number[END])],
        )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=inner,
        pad_token=PAD,
        unk_token=UNKNOWN,
        bos_token=START,
        eos_token=END,
        model_max_length=CLIP_CONTEXT if for_clip else 64,
        clean_up_tokenization_spaces=False,
    )


def write_tokenizer(folder: Path, *, for_clip: bool) -> None:
    """Write the files that `AutoTokenizer.from_pretrained(folder)` reads."""
    tokenizer(for_clip=for_clip).save_pretrained(folder)
