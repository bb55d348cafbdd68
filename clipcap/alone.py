"""An output in, the time to change it outside of a night out: alone, and with Delta logs after it.

For compact, vacuum, forget, repair and migrate; a night holds its lease by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress

from clipcap import delta, leases, storage
from clipcap.errors import ClipcapError, NotFoundError
from clipcap.layout import Run


@contextmanager
def alone(run: Run, what: str) -> Iterator[None]:
    """Hold the lease of an output while the block runs; then bring its Delta logs, if any, to it.

    They are brought to it also where the block ends with an error: what it changed stays.

    Args:
        run: What is done, to which output.
        what: The same for people.

    Raises:
        NotFoundError: there is nothing at the output's address.
        LeaseError: a night, or another such call, works on it, or took over meanwhile.
        StorageError: it cannot be written to.
    """
    if not any(batch.num_rows for batch in storage.list_batches(run.out)):
        raise NotFoundError(f"There is no output at {run.out}. Is the address right?")
    with leases.held(run.out, what=what, run_id=run.run_id):
        is_whole = False
        try:
            yield
            is_whole = True
        finally:
            with nullcontext() if is_whole else suppress(ClipcapError):  # the first one says more
                leases.require(run.out)
                delta.follow(run.out, run_id=run.run_id)
