"""Look at the new images in a bucket every night and write down what is in them."""

from typing import Final

__version__: Final = "0.1.0"
