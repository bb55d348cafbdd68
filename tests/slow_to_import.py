"""Nothing in, nothing out: a module whose import takes its time."""

import time

time.sleep(30)
