"""Flows compose tasks and decide nothing; the command line starts them."""

import os

# torch reads this when it is loaded. Threads that spin while they wait for each other take the
# cores from the processes that decode: small models are then half as fast.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
