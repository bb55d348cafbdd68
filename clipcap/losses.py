"""A captioner and a batch of captions in, their summed cross entropy out.

The loss is the original ClipCap's: cross entropy of each caption token, given the prefix and the
tokens before it. `caption_loss` reads one caption a row, `packed_loss` the rows of
`clipcap.packing`; both give the same number and the same gradients.
"""

from __future__ import annotations

import logging
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional

from clipcap.batches import Captions
from clipcap.captioner import Captioner
from clipcap.packing import Rows, pack
from clipcap.trees import has_window

log = logging.getLogger(__name__)
_TRIED: Final = ((0, 3), (0, 2), (1, 2), (0, 1), (1, 1))  # image and words of the captions tried
_TOLERANCE: Final = 1e-4  # of the largest logit: float32 differs by 1e-6, a mask not kept by more


def caption_loss(
    captioner: Captioner,
    embedding_BD: Tensor,
    token_BT: Tensor,
    mask_BT: Tensor,
    *,
    smoothing: float = 0.0,
) -> Tensor:
    """Return the summed cross entropy of the tokens under the mask.

    With smoothing, that share of each word is spread evenly over all words.

    Padding stands on the right of each row, so a causal model needs no attention mask; the head
    runs on the T caption positions only.
    """
    language_model = captioner.language_model
    prefix_BPE = captioner.prefix(embedding_BD)
    read_BTE = language_model.get_input_embeddings()(token_BT[:, :-1])
    logits_BTV = language_model(
        inputs_embeds=torch.cat((prefix_BPE, read_BTE), 1),
        use_cache=False,
        logits_to_keep=token_BT.shape[1],
    ).logits
    return functional.cross_entropy(
        logits_BTV[mask_BT].float(),
        token_BT[mask_BT],
        reduction="sum",
        label_smoothing=smoothing,
    )


def packed_loss(
    captioner: Captioner, embedding_ID: Tensor, rows: Rows, *, smoothing: float = 0.0
) -> Tensor:
    """Return the summed cross entropy of the captions in the rows; smoothing as above.

    `embedding_ID[i]` belongs to the image `rows.image_I[i]`. The mapper and the prefix run once an
    image; the head runs on the ends of prefixes and on words only.
    """
    prefix_IPE = captioner.prefix(embedding_ID)
    logits_UV = _logits(captioner.language_model, prefix_IPE, rows)
    log_p_UV = logits_UV.float().log_softmax(-1)
    loss = -log_p_UV[rows.source_N, rows.target_N].sum()
    if smoothing:
        loss = (1 - smoothing) * loss - smoothing * log_p_UV.mean(-1)[rows.source_N].sum()
    return loss


def _logits(language_model: Any, prefix_IPE: Tensor, rows: Rows) -> Tensor:  # noqa: ANN401 - transformers' own types are dynamic
    """Return the logits at the end of each prefix, then at each word."""
    word_WE = language_model.get_input_embeddings()(rows.token_W)
    read_RTE = prefix_IPE.new_zeros((*rows.position_RT.shape, prefix_IPE.shape[-1]))
    places = torch.cat((rows.prefix_IP.flatten(), rows.word_W))
    read = torch.cat((prefix_IPE.flatten(0, 1), word_WE))
    read_RTE = read_RTE.flatten(0, 1).index_copy(0, places, read).view_as(read_RTE)
    hidden_RTE = language_model.base_model(
        inputs_embeds=read_RTE,
        attention_mask=rows.mask(read_RTE.dtype),
        position_ids=rows.position_RT,
        use_cache=False,
    ).last_hidden_state
    guessing = torch.cat((rows.prefix_IP[:, -1], rows.word_W))
    logits_UV: Tensor = language_model.get_output_embeddings()(
        hidden_RTE.flatten(0, 1).index_select(0, guessing)
    )
    return logits_UV


@torch.inference_mode()
def can_pack(captioner: Captioner) -> bool:
    """Tell whether the language model gives the same logits for packed rows as for plain ones.

    Not so where it takes no mask of its own, counts positions by itself (ALiBi), looks back only so
    far, carries a state instead of attending, or does something to the logits behind the head. It
    is tried out on a few short captions of two images.
    """
    language_model = captioner.language_model
    if has_window(language_model.config):
        return False
    was_training = language_model.training
    language_model.eval()
    try:
        # Under autocast its rounding would look like a fault.
        with torch.autocast(captioner.device.type, enabled=False):
            return _packs(language_model, captioner.card.prefix_length)
    except torch.OutOfMemoryError:
        raise
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        log.debug("reads no packed rows", exc_info=error)  # other arguments, head or body
        return False
    finally:
        language_model.train(was_training)


def _packs(language_model: Any, prefix_length: int) -> bool:  # noqa: ANN401 - transformers' own types are dynamic
    table_VE = language_model.get_input_embeddings().weight
    generator = torch.Generator().manual_seed(0)
    length_S = torch.tensor([words for _, words in _TRIED])
    token_ST = torch.randint(len(table_VE), (len(_TRIED), 3), generator=generator)
    tried = Captions(torch.tensor([image for image, _ in _TRIED]), token_ST, length_S)
    shape = (2, prefix_length, table_VE.shape[1])
    prefix_IPE = table_VE.std() * torch.randn(shape, generator=generator).to(table_VE)
    rows = pack(tried, prefix_length).to(table_VE.device)
    packed_UV = _logits(language_model, prefix_IPE[rows.image_I], rows).float()
    plain = []
    for image, ids in zip(tried.row_S.tolist(), token_ST.to(table_VE.device), strict=True):
        word_TE = language_model.get_input_embeddings()(ids[:-1])
        read_BTE = torch.cat((prefix_IPE[image], word_TE))[None]
        plain.append(language_model(inputs_embeds=read_BTE, use_cache=False).logits[0].float())
    return _same(packed_UV, plain, rows, tried)


def _same(packed_UV: Tensor, plain: list[Tensor], rows: Rows, tried: Captions) -> bool:
    """Compare what each caption's words are guessed from."""
    found: list[Tensor] = []
    wanted: list[Tensor] = []
    word = len(rows.image_I)
    for image in rows.image_I.tolist():
        for n in (tried.row_S == image).nonzero().flatten().tolist():
            words = int(tried.length_S[n]) - 1
            end = rows.image_I.tolist().index(image)
            found += [packed_UV[end : end + 1], packed_UV[word : word + words]]
            first = len(plain[n]) - tried.token_ST.shape[1]
            wanted.append(plain[n][first : first + words + 1])
            word += words
    found_UV, wanted_UV = torch.cat(found), torch.cat(wanted)
    return bool((found_UV - wanted_UV).abs().max() <= _TOLERANCE * wanted_UV.abs().max())
