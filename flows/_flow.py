"""A function in, a Prefect flow out: one task at a time, nothing retried as a whole.

One thread, since a shard bounds the memory of a run and a model fills its device. Tasks are tried
again, flows are not: a flow's retry under a deployment's concurrency limit can end Crashed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ParamSpec, TypeVar, cast, get_type_hints

from prefect import Flow
from prefect.futures import PrefectFuture
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

import clipcap
from clipcap import credentials
from flows import _slots

P = ParamSpec("P")
R = TypeVar("R")


class _Flow(Flow[P, R]):
    """A flow that looks at its parameters before Prefect stores them."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Any:  # type: ignore[override]  # noqa: ANN401 - what Prefect's returns
        """Run the flow.

        Raises:
            SettingsError: an address among the parameters carries credentials.
        """
        credentials.refuse([args, kwargs])
        return super().__call__(*args, **kwargs)


_slots.install(_Flow)


def flow(*, name: str, run_name: str) -> Callable[[Callable[P, R]], Flow[P, R]]:
    """Make a Prefect flow with this project's rules; `run_name` may name the flow's parameters.

    No address in a parameter may carry credentials. The flow's JSON schema says so too: a server
    that is asked to run a deployment refuses before anything is stored.
    """

    def make(function: Callable[P, R]) -> Flow[P, R]:
        runner = cast("TaskRunner[PrefectFuture[Any]]", ThreadPoolTaskRunner(max_workers=1))
        _guard(function)
        return _Flow(
            function,
            name=name,
            flow_run_name=run_name,
            version=clipcap.__version__,
            task_runner=runner,
            persist_result=False,
            retries=0,
        )

    return make


def _guard(function: Callable[..., Any]) -> None:
    """Put the rule on addresses into the type of each parameter."""
    hints = get_type_hints(function, include_extras=True)
    function.__annotations__ = {
        name: hint if name == "return" else Annotated[hint, credentials.Refused()]
        for name, hint in hints.items()
    }
