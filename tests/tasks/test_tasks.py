"""Every task: this project's rules for retries, nothing cached, nothing pickled."""

from __future__ import annotations

import ast
import importlib
import pkgutil

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect import Task
from prefect.cache_policies import NO_CACHE

import tasks
from clipcap import errors
from clipcap.errors import ClipcapError
from clipcap.layout import Shard
from tasks._task import RETRY_DELAYS_S, cut, is_retryable
from tests.architecture.tree import dotted, sources


def all_tasks() -> list[Task[..., object]]:
    """Return every task of the folder."""
    names = [f"tasks.{module.name}" for module in pkgutil.iter_modules(tasks.__path__)]
    found = [thing for name in names for thing in vars(importlib.import_module(name)).values()]
    return [thing for thing in found if isinstance(thing, Task)]


@pytest.mark.parametrize("task", all_tasks(), ids=lambda task: str(task.name))
def test_a_task_is_tried_again_by_error_class_and_leaves_no_pickle(
    task: Task[..., object],
) -> None:
    assert task.retries == len(RETRY_DELAYS_S)
    assert task.retry_delay_seconds == list(RETRY_DELAYS_S)
    assert task.retry_jitter_factor, "or all workers ask a store again at the same moment"
    assert task.retry_condition_fn is not None
    assert task.persist_result is False
    assert task.cache_policy is NO_CACHE
    assert task.tags == set(), "each run of it would wait for what the server says of their limits"


def test_tasks_and_flows_are_made_by_the_projects_own_decorators() -> None:
    """Prefect's own would cache, pickle, and try again what cannot be helped."""
    made_in = {
        path
        for path, module in sources().items()
        for node in ast.walk(module)
        if brought(node) & {"task", "flow"}
        or dotted(node) in ("prefect.flow", "prefect.task")
        or any(ast.unparse(base).startswith("Flow[") for base in getattr(node, "bases", []))
    }
    assert made_in == {"tasks/_task.py", "flows/_flow.py"}


def brought(node: ast.AST) -> set[str]:
    """Return what an import brings from Prefect itself."""
    if isinstance(node, ast.ImportFrom) and node.module == "prefect":
        return {alias.name for alias in node.names}
    return set()


@pytest.mark.parametrize(
    "kind",
    [kind for kind in vars(errors).values() if isinstance(kind, type)],
    ids=lambda kind: str(kind.__name__),
)
def test_an_errors_class_says_whether_a_task_is_tried_again(kind: type) -> None:
    if issubclass(kind, errors.ImageError):
        error: ClipcapError = kind("truncated", "cut")
    elif issubclass(kind, ClipcapError):
        error = kind("no")
    else:
        pytest.skip("not an error")
    helped = (errors.TransientStorageError, errors.WorkerLostError)
    assert is_retryable(error) == isinstance(error, helped)


@pytest.mark.parametrize("error", [ConnectionResetError(), TimeoutError()])
def test_a_connection_that_breaks_is_worth_another_try(error: Exception) -> None:
    assert is_retryable(error)


@pytest.mark.parametrize("error", [ValueError(), OSError("disk full"), KeyError(), "no error"])
def test_a_mistake_of_ours_is_not_tried_again(error: object) -> None:
    assert not is_retryable(error)


@given(count=st.integers(0, 40), size=st.integers(1, 12))
def test_each_shard_is_in_exactly_one_partition_in_order(count: int, size: int) -> None:
    shards = [Shard("2026-11-20", f"{n:03}") for n in range(count)]

    partitions = cut(shards, size)

    assert [shard for partition in partitions for shard in partition] == shards
    assert all(0 < len(partition.shards) <= size for partition in partitions)


def test_a_partition_is_named_by_its_first_shard() -> None:
    shards = [Shard("2026-11-20", "a"), Shard("2026-11-20", "b"), Shard("2026-11-21", "c")]
    assert [str(partition) for partition in cut(shards, 2)] == [
        "2026-11-20/a and 1 more",
        "2026-11-21/c",
    ]
