"""Bytes of an image in, the small picture of it that a page shows out.

`work` is what worker processes run (`clipcap.workers`).
"""

from __future__ import annotations

import base64
import io
from typing import Any, Final

from clipcap import images, sharedmemory
from clipcap.images import ImageSettings

SIDE_PX: Final = 160
_DRAFT_PX: Final = 2 * SIDE_PX  # Pillow's draft at twice the size: no visible loss
_ANY_SIZE: Final = ImageSettings(max_bytes=2**40, max_pixels=2**40, min_side_px=1)
_QUALITY: Final = 72  # about 5 KB a picture


def work(_shared: dict[str, Any], item: list[Any]) -> str:
    """Return the thumbnail of the bytes at `[path, offset, length]`."""
    return thumbnail(sharedmemory.part(*item))


def thumbnail(data: bytes) -> str:
    """Return a JPEG of at most 160 pixels as a data URI.

    Raises:
        ImageError: it cannot be decoded.
    """
    turned = images.decode(data, _ANY_SIZE, draft_px=_DRAFT_PX)
    turned.thumbnail((SIDE_PX, SIDE_PX))
    turned.info.clear()  # else a comment in the file rides along
    stream = io.BytesIO()
    turned.save(stream, "JPEG", quality=_QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
