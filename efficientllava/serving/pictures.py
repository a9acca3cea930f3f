"""Pictures in a request: only as data URLs, only in formats of the web, only of bounded size.

**Decision (no URLs).** A server that fetches what a request names can be made to read the addresses
that only it reaches (SSRF). Nothing is fetched.
"""

from __future__ import annotations

import base64
import binascii
import re
from io import BytesIO

from PIL import Image, UnidentifiedImageError

from efficientllava.data.images import as_rgb
from efficientllava.errors import UserError
from efficientllava.serving.refusal import Refusal

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""Pillow starts programs for some others (EPS)."""
MOST_PIXELS = 50_000_000
"""150 MB once decoded."""
_DATA = re.compile(r"data:image/[\w.+-]+(;[\w.+=-]+)*;base64,", re.IGNORECASE)


def picture_of(url: str, where: str) -> Image.Image:
    """The picture of a data URL, in RGB; of an animation the first.

    Args:
        where: the field of the request.

    Raises:
        Refusal: it is no data URL of an image in base64, or the image cannot be decoded or is too
            large.
    """
    if (start := _DATA.match(url)) is None:
        raise Refusal(
            f"{where}: only data URLs are taken (data:image/png;base64,...): nothing is fetched",
            param=where,
            code="invalid_image_url",
        )
    try:
        content = base64.b64decode(url[start.end() :], validate=True)
        with Image.open(BytesIO(content), formats=FORMATS) as image:
            if (pixels := image.width * image.height) > MOST_PIXELS:
                raise Refusal(
                    f"{where}: an image of {pixels:,} pixels; {MOST_PIXELS:,} are taken at most",
                    param=where,
                    code="image_too_large",
                )
            return as_rgb(image, where)
    except Image.DecompressionBombError as error:
        raise Refusal(f"{where}: {error}", param=where, code="image_too_large") from error
    except UnidentifiedImageError as error:
        raise Refusal(
            f"{where}: not an image in one of these formats: {', '.join(FORMATS)}",
            param=where,
            code="invalid_image",
        ) from error
    except (binascii.Error, OSError, SyntaxError, ValueError, UserError) as error:
        said = error.what if isinstance(error, UserError) else str(error)
        raise Refusal(
            f"{where}: a broken image ({said})", param=where, code="invalid_image"
        ) from error
