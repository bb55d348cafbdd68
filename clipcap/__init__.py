"""Look at the new images in a bucket every night and write down what is in them."""

import os
from typing import Final

# webdataset reads this when it is loaded: it opens no `pipe:...`, and no decoder of it unpickles.
os.environ.setdefault("WDS_SECURE", "1")

__version__: Final = "0.1.0"
