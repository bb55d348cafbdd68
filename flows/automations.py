"""A file of Prefect automations in, the same on the server out: made or mended by name.

Ours are those whose names begin with `clipcap: `; nothing else on the server is ever changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal
from uuid import UUID

import httpx
import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.sorting import AutomationSort
from prefect.events.actions import SendNotification
from prefect.events.schemas.automations import Automation, AutomationCore
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError

from clipcap.errors import ServerError, SettingsError

OURS: Final = "clipcap: "
_NOTHING: Final = {"type": "do-nothing"}
_PAGE: Final = 200


@dataclass(frozen=True, slots=True)
class Wanted:
    """One automation as its file has it; `notify` is told by a block, where there is one."""

    core: Mapping[str, Any]
    notify: Mapping[str, str] | None

    @property
    def name(self) -> str:
        """Return the name that it is known by."""
        return str(self.core["name"])

    def made(self, block: UUID | None) -> AutomationCore:
        """Return it as the server takes it.

        Raises:
            ValidationError: it is no automation.
        """
        actions = list(self.core.get("actions", ()))
        if self.notify is not None and block is not None:
            given = {"type": "send-notification", "block_document_id": block}
            actions.append(given | dict(self.notify))
        return AutomationCore.model_validate({**self.core, "actions": actions or [_NOTHING]})


@dataclass(frozen=True, slots=True)
class Difference:
    """How an automation on the server stands to the file."""

    name: str
    state: Literal["same", "missing", "different", "doubled", "not in the file"]
    wanted: AutomationCore | None
    found: tuple[Automation, ...]


def read(file: str) -> list[Wanted]:
    """Return what a file wants.

    Raises:
        SettingsError: it is not there, it is no such file, or a name is not one of ours.
    """
    try:
        written = yaml.safe_load(Path(file).read_text())
        found = [_wanted(one) for one in written["automations"]]
    except (OSError, yaml.YAMLError, LookupError, TypeError, ValueError) as error:
        raise SettingsError(
            f"{file} must be a file of automations as deployments/automations.yaml is: {error}"
        ) from error
    names = [one.name for one in found]
    if wrong := [name for name in names if not name.startswith(OURS) or names.count(name) > 1]:
        raise SettingsError(
            f"{file}: names must begin with '{OURS}' and come once, but there is '{wrong[0]}'. "
            "They tell which automations of the server are ours."
        )
    return found


def _wanted(one: Mapping[str, Any]) -> Wanted:
    core = {name: value for name, value in one.items() if name != "notify"}
    found = Wanted(core, one.get("notify"))
    found.made(UUID(int=0))
    return found


@contextmanager
def server() -> Iterator[SyncPrefectClient]:
    """Give a client of the server that is set; what it refuses becomes one sentence.

    Raises:
        ServerError: none is set, it does not answer, or it says no.
    """
    try:
        with get_client(sync_client=True) as client:
            yield client
    except PrefectHTTPStatusError as error:
        said = f"{error.response.status_code} {error.response.text[:300]}"
        login = error.response.status_code == httpx.codes.UNAUTHORIZED
        more = " It has a login: set PREFECT_API_AUTH_STRING." if login else ""
        raise ServerError(f"The Prefect server refused: {said}.{more}") from error
    except httpx.HTTPError as error:
        raise ServerError(f"The Prefect server did not answer: {error}") from error


def block(client: SyncPrefectClient, name: str) -> UUID:
    """Return the id of a notification block, `TYPE/NAME` such as `slack-webhook/ops`.

    Raises:
        SettingsError: there is none of this name.
    """
    kind, _, own = name.partition("/")
    try:
        return client.read_block_document_by_name(own, kind).id
    except (ObjectNotFound, ValueError) as error:
        raise SettingsError(
            f"The server must have the block '{name}' (TYPE/NAME, such as slack-webhook/ops), but "
            "has none. Make it on the page Blocks of its UI; `prefect block ls` lists them."
        ) from error


def differences(
    client: SyncPrefectClient, wanted: Sequence[Wanted], notify: UUID | None
) -> list[Difference]:
    """Compare; without a block of its own, an automation keeps the one that it has."""
    there: dict[str, list[Automation]] = {}
    for one in _on(client):
        if one.name.startswith(OURS):
            there.setdefault(one.name, []).append(one)
    found = [_difference(one, there.pop(one.name, []), notify) for one in wanted]
    left = [Difference(name, "not in the file", None, tuple(ones)) for name, ones in there.items()]
    return found + left


def _difference(one: Wanted, there: Sequence[Automation], notify: UUID | None) -> Difference:
    if not there:
        return Difference(one.name, "missing", one.made(notify), ())
    first = there[0]
    made = one.made(notify or _notified(first))
    made = made.model_copy(update={"enabled": first.enabled})  # who pauses one, wants it paused
    if len(there) > 1:
        return Difference(one.name, "doubled", made, tuple(there))
    same = _plain(made) == _plain(first)
    return Difference(one.name, "same" if same else "different", made, tuple(there))


def _notified(one: Automation) -> UUID | None:
    blocks = [act.block_document_id for act in one.actions if isinstance(act, SendNotification)]
    return blocks[0] if blocks else None


def _plain(one: AutomationCore) -> dict[str, Any]:
    found = one.model_dump(mode="json", exclude={"id", "owner_resource", "created", "updated"})
    trigger = {name: value for name, value in found["trigger"].items() if name != "id"}
    for name in ("after", "expect", "for_each"):  # sets: in no order
        trigger[name] = sorted(trigger.get(name) or ())
    return found | {"trigger": trigger}


def apply(client: SyncPrefectClient, wanted: Sequence[Wanted], notify: UUID | None) -> list[str]:
    """Make the server's automations those of the file; return what was done, in words.

    Of those that stand there twice the oldest stays. Two who apply at once end with one each.
    """
    done = []
    for one in differences(client, wanted, notify):
        done += [f"{_settled(client, one)}: {one.name}"]
    for one in differences(client, wanted, notify):  # another one applied at the same moment
        if one.state == "doubled":
            _settled(client, one)
    return done


def _settled(client: SyncPrefectClient, one: Difference) -> str:
    if one.wanted is None:
        return "not in the file, left"
    if one.state == "missing":
        client.create_automation(one.wanted)
        return "created"
    for double in one.found[1:]:
        _delete(client, double.id)
    if _plain(one.wanted) == _plain(one.found[0]):
        return "doubles removed" if one.state == "doubled" else "unchanged"
    client.update_automation(one.found[0].id, _whole(one.wanted))
    return "updated"


def _delete(client: SyncPrefectClient, double: UUID) -> None:
    try:
        client.delete_automation(double)
    except PrefectHTTPStatusError as error:
        if error.response.status_code != httpx.codes.NOT_FOUND:
            raise  # gone already: somebody else applies the same file


def _whole(one: AutomationCore) -> AutomationCore:
    """Return it with every field set that the server takes; the client sends only what is set."""
    return AutomationCore.model_validate(one.model_dump(mode="json", exclude={"owner_resource"}))


def _on(client: SyncPrefectClient) -> Iterator[Automation]:
    """Yield every automation of the server, oldest first; it gives them in pages."""
    seen: list[Automation] = []
    while True:
        page = client.read_automations(
            sort=AutomationSort.CREATED_DESC, limit=_PAGE, offset=len(seen)
        )
        seen += page
        if len(page) < _PAGE:
            yield from reversed(seen)
            return
