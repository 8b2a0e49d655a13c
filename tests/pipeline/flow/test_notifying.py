"""Who is told how a run has ended, and what not."""

import traceback
from typing import Any
from uuid import uuid4

import pytest
from prefect.blocks.abstract import NotificationBlock
from prefect.blocks.core import Block
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.blocks.system import Secret
from prefect.client.schemas.objects import FlowRun
from prefect.states import Completed, State

from pipeline.flow.flow import distill
from pipeline.flow.notifying import VARIABLE, NotifyError, announce, notifier_of
from tests.support.waiting import free_port


class Told(NotificationBlock):
    """Keeps what it is told."""

    told: list[tuple[str | None, str]] = []

    def notify(self, body: str, subject: str | None = None) -> None:
        self.told.append((subject, body))


@pytest.fixture(autouse=True)
def blocks(monkeypatch: pytest.MonkeyPatch) -> dict[str, Block]:
    """The blocks that the server keeps."""
    kept: dict[str, Block] = {}

    def load(name: str) -> Block:
        if name not in kept:
            raise ValueError(f"Unable to find block document named {name}")
        return kept[name]

    monkeypatch.setattr(Block, "load", load)
    monkeypatch.delenv(VARIABLE, raising=False)
    return kept


def end(state: State[Any], **parameters: str) -> None:
    """A run ends."""
    announce(distill, FlowRun(flow_id=uuid4(), name="odd-fox", parameters=parameters), state)


def test_the_runs_own_block_comes_before_that_of_the_environment(
    blocks: dict[str, Block], monkeypatch: pytest.MonkeyPatch
) -> None:
    own, general = Told(), Told()
    blocks.update({"told/own": own, "told/general": general})
    end(Completed())
    monkeypatch.setenv(VARIABLE, "told/general")
    end(Completed(message="All is well."))
    end(Completed(), notify="told/own")
    assert general.told == [("kdm-distill: run odd-fox is Completed", "All is well.")]
    assert own.told == [("kdm-distill: run odd-fox is Completed", "The run is Completed.")]


def test_blocks_that_are_missing_or_send_nothing(
    blocks: dict[str, Block], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert notifier_of({"notify": None}) is None
    monkeypatch.setenv(VARIABLE, "secret/token")
    with pytest.raises(NotifyError, match="there is no block 'secret/token'.*TYPE/NAME"):
        notifier_of({})
    blocks["secret/token"] = Secret(value="hunter2")
    with pytest.raises(NotifyError, match="'secret/token' sends no notifications") as caught:
        notifier_of({})
    assert "hunter2" not in str(caught.value)


def test_a_notification_that_fails_does_not_repeat_its_address(blocks: dict[str, Block]) -> None:
    blocks["custom-webhook/team"] = CustomWebhookNotificationBlock(
        name="hook", url=f"http://127.0.0.1:{free_port()}/hooks/hunter2", json_data={"a": "b"})
    with pytest.raises(NotifyError, match="could not be sent") as caught:
        end(Completed(), notify="custom-webhook/team")
    shown = "".join(traceback.format_exception(caught.value))
    assert "hunter2" not in shown
    assert "ConnectError" in shown
