"""`clipcap automations`: made or mended by name, others left alone; what they wait for comes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextvars import copy_context
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import yaml
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.events import emit_event
from prefect.events.schemas.automations import Automation, AutomationCore

from clipcap.stages.label import LabelSettings
from flows._artifacts import EVENTS
from flows.nightly import nightly
from flows.settings import NightlySettings
from tests.command import Ended, clipcap
from tests.deployments.files import FOLDER
from tests.flows.test_drift import BLUE, RED, STRICT, fill
from tests.nights import draw, make_tiny
from tests.prefect_servers import PrefectServer

FILE = FOLDER / "automations.yaml"
WRITTEN: list[dict[str, Any]] = yaml.safe_load(FILE.read_text())["automations"]
NAMES = [one["name"] for one in WRITTEN]
HAPPENS_WITHIN_S = 60.0
SOME = UUID(int=2)


@pytest.fixture
def client(recorded: PrefectServer) -> Iterator[SyncPrefectClient]:
    """A client of a server without automations."""
    with get_client(sync_client=True) as found:
        for one in found.read_automations():
            found.delete_automation(one.id)
        yield found


def apply(*words: object) -> Ended:
    """Apply the file of the project, or the one named last."""
    ended = clipcap("automations", "apply", *words)
    assert ended.code == 0, ended.err
    return ended


def there(client: SyncPrefectClient) -> dict[str, str]:
    """Return every automation of the server, by its name, as text."""
    return {one.name: one.model_dump_json() for one in client.read_automations()}


def read(client: SyncPrefectClient, name: str) -> Automation:
    """Return the one automation of a name."""
    (found,) = client.read_automations_by_name(name)
    return found


def soon(found: Callable[[], bool]) -> bool:
    """Wait until something is so."""
    deadline = time.monotonic() + HAPPENS_WITHIN_S
    while not found() and time.monotonic() < deadline:
        time.sleep(0.2)
    return found()


def test_a_second_time_changes_nothing(client: SyncPrefectClient) -> None:
    first = apply(FILE).out.splitlines()
    before = there(client)
    second = apply(FILE).out.splitlines()

    assert first == [f"created: {name}" for name in NAMES]
    assert second == [f"unchanged: {name}" for name in NAMES]
    assert there(client) == before
    assert len(client.read_automations()) == len(NAMES)
    shown = clipcap("automations", "show", FILE).out.splitlines()
    assert [line.split()[0] for line in shown] == ["same"] * len(NAMES)


def test_ours_are_mended_doubles_go_and_those_of_others_stay(client: SyncPrefectClient) -> None:
    apply(FILE)
    theirs, old = "theirs", "clipcap: older"
    for name in (theirs, old, NAMES[0]):
        client.create_automation(AutomationCore.model_validate({**WRITTEN[0], "name": name}))
    found = read(client, NAMES[1])
    by_hand = {**found.model_dump(mode="json"), "description": "by hand", "enabled": False}
    for name in ("id", "owner_resource"):
        by_hand.pop(name)
    client.update_automation(found.id, AutomationCore.model_validate(by_hand))
    shown = clipcap("automations", "show", FILE).out
    assert f"doubled         {NAMES[0]}" in shown
    assert f"different       {NAMES[1]} (paused)" in shown
    assert f"not in the file {old}" in shown

    done = apply(FILE).out.splitlines()

    assert done[:2] == [f"doubles removed: {NAMES[0]}", f"updated: {NAMES[1]}"]
    assert done[-1] == f"not in the file, left: {old}"
    assert sorted(there(client)) == sorted([*NAMES, theirs, old])
    assert len(client.read_automations()) == len(NAMES) + 2
    mended = read(client, NAMES[1])
    assert mended.description == WRITTEN[1]["description"]
    assert not mended.enabled, "who pauses one, wants it paused"


def test_two_who_apply_at_once_leave_one_of_each(
    client: SyncPrefectClient, prefect_server: PrefectServer
) -> None:
    from flows import automations

    def one() -> None:
        with automations.server() as own:
            automations.apply(own, automations.read(str(FILE)), None)

    both = [threading.Thread(target=copy_context().run, args=(one,)) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    apply(FILE)
    assert sorted(one.name for one in client.read_automations()) == sorted(NAMES)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("automations: [{name: theirs}]", "trigger"),
        ("automations: 3", "must be a file of automations"),
        ("- {", "must be a file of automations"),
        (FILE.read_text().replace("clipcap: drift", "drift"), "names must begin with 'clipcap: '"),
        (FILE.read_text().replace("clipcap: drift", NAMES[0]), "come once"),
    ],
)
def test_a_file_that_is_none_is_refused(
    text: str, said: str, tmp_path: Path, recorded: PrefectServer
) -> None:
    (tmp_path / "file.yaml").write_text(text)
    ended = clipcap("automations", "apply", tmp_path / "file.yaml")
    assert ended.code == 2
    assert said in ended.err


def test_a_block_that_is_not_there_and_a_server_that_is_not_set_are_told(
    recorded: PrefectServer,
) -> None:
    ended = clipcap("automations", "apply", "--notify", "slack-webhook/nobody", FILE)
    assert (ended.code, "has none" in ended.err) == (2, True)


def test_without_a_server_nothing_is_started() -> None:
    ended = clipcap("automations", "show", FILE)
    assert (ended.code, "PREFECT_API_URL is not" in ended.err) == (8, True)


class Hook(ThreadingHTTPServer):
    """Keeps what notifications say."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.said: list[str] = []


class _Handler(BaseHTTPRequestHandler):
    server: Hook

    def do_POST(self) -> None:
        self.server.said.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_words: object) -> None:
        """Nothing."""


@pytest.fixture
def hook(recorded: PrefectServer) -> Iterator[Hook]:
    """A block that posts to this process: `custom-webhook/tests`."""
    with Hook() as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        block = CustomWebhookNotificationBlock(
            name="tests",
            url=f"http://127.0.0.1:{found.server_address[1]}/",
            json_data={"subject": "{{subject}}", "body": "{{body}}"},
        )
        block.save("tests", overwrite=True)
        yield found
        found.shutdown()
        thread.join()


def test_a_night_with_too_many_rejects_is_told_in_its_own_words(
    client: SyncPrefectClient, hook: Hook, tmp_path: Path
) -> None:
    apply("--notify", "custom-webhook/tests", FILE)
    before = there(client)
    assert apply(FILE).out.count("unchanged") == len(NAMES), "the block stays without --notify"
    assert there(client) == before
    tiny = make_tiny(tmp_path / "models")
    settings = NightlySettings(embed=tiny.encoder, caption=tiny.captioner)
    draw(tmp_path / "in" / "good.png", 1)
    (tmp_path / "in" / "bad.png").write_bytes(b"no picture")

    state = nightly(str(tmp_path / "in"), str(tmp_path / "out"), settings, return_state=True)

    assert state.is_failed()
    assert soon(lambda: bool(hook.said)), "nothing was told"
    assert "too many rejects" in hook.said[0]
    assert "Stopped: 50% of 2 new files were rejected" in hook.said[0]


def test_a_night_that_differs_from_those_before_is_told_in_its_own_words(
    client: SyncPrefectClient, hook: Hook, tmp_path: Path
) -> None:
    apply("--notify", "custom-webhook/tests", FILE)
    tiny, source, out = make_tiny(tmp_path / "models"), tmp_path / "in", str(tmp_path / "out")
    label = LabelSettings(label_sets=(tiny.label_set,))
    settings = NightlySettings(embed=tiny.encoder, caption=None, label=label, drift=STRICT)
    fill(source, 1, RED)
    nightly.fn(str(source), out, settings, date(2026, 11, 1))
    fill(source, 2, BLUE)

    state = nightly(str(source), out, settings, date(2026, 11, 2), return_state=True)

    assert state.is_failed()
    assert soon(lambda: any("it differs from earlier nights" in said for said in hook.said))
    (told,) = [said for said in hook.said if "it differs from earlier nights" in said]
    assert "embedding mean" in told


def test_the_file_waits_for_every_event_that_runs_send() -> None:
    waited = {name for one in WRITTEN for name in one["trigger"]["expect"]}
    assert {name for name in waited if name.startswith("clipcap.")} == set(EVENTS.values())


def apply_with_ten_seconds(file: Path) -> None:
    """Apply the file's own automation for nights that do not come, with them for 26 hours."""
    one = next(one for one in WRITTEN if "26 hours" in one["name"])
    quick = {**one, "trigger": {**one["trigger"], "within": 10}}
    file.write_text(yaml.safe_dump({"automations": [quick]}))
    apply("--notify", "custom-webhook/tests", file)


def test_no_completed_night_for_too_long_is_noticed(
    client: SyncPrefectClient, hook: Hook, tmp_path: Path
) -> None:
    """The file's own automation, with ten seconds in the place of 26 hours."""
    apply_with_ten_seconds(tmp_path / "quick.yaml")
    time.sleep(2)  # the server's triggers learn of it
    began = time.monotonic()
    tell_completed()
    while time.monotonic() - began < 6:
        time.sleep(0.5)
    tell_completed()  # starts the clock anew
    assert soon(lambda: bool(hook.said))
    assert time.monotonic() - began > 15
    assert "no night was completed" in hook.said[0]


def test_each_deployment_of_nights_has_a_clock_of_its_own(
    client: SyncPrefectClient, hook: Hook, tmp_path: Path
) -> None:
    """One that completes every day must not speak for another that stopped."""
    apply_with_ten_seconds(tmp_path / "quick.yaml")
    flow = client.create_flow_from_name("nightly")
    alive, silent = (client.create_deployment(flow, name) for name in ("alive", "silent"))
    time.sleep(2)  # the server's triggers learn of it
    tell_completed(silent)
    deadline = time.monotonic() + HAPPENS_WITHIN_S
    while not hook.said and time.monotonic() < deadline:
        tell_completed(alive)
        time.sleep(2)
    (said,) = hook.said
    assert "The last one of silent was" in said


def tell_completed(deployment: UUID = SOME) -> None:
    """Say what the server says when a run of a night ends."""
    emit_event(
        "prefect.flow-run.Completed",
        resource={"prefect.resource.id": f"prefect.flow-run.{UUID(int=1)}"},
        related=[
            {"prefect.resource.id": "prefect.tag.nightly", "prefect.resource.role": "tag"},
            {
                "prefect.resource.id": f"prefect.deployment.{deployment}",
                "prefect.resource.role": "deployment",
            },
        ],
    )
