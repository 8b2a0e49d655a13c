"""Telling someone how a run has ended, through a notification block of Prefect."""

import os
from typing import Any

from prefect.blocks.abstract import NotificationBlock
from prefect.blocks.core import Block
from prefect.client.schemas.objects import FlowRun, State
from prefect.flows import Flow

from kdm_core.errors import KDMError

VARIABLE = "KDM_NOTIFY"
"""Names the block where a run does not: TYPE/NAME, e.g. slack-webhook/my-team."""


class NotifyError(KDMError):
    """There is nobody to notify."""


def load_notifier(name: str) -> NotificationBlock:
    """The notification block of this name, as kept by the server.

    Raises:
        NotifyError: there is none.
    """
    try:
        block = Block.load(name)
    except (ValueError, RuntimeError) as error:
        raise NotifyError(f"notify: there is no block '{name}' ({error}); it is TYPE/NAME as "
                          "`prefect block ls` shows them") from error
    if not isinstance(block, NotificationBlock):
        raise NotifyError(f"notify: the block '{name}' sends no notifications; "
                          "slack-webhook and custom-webhook do, for example")
    return block


def notifier_of(parameters: dict[str, Any]) -> NotificationBlock | None:
    """Whom a run with these flow parameters notifies.

    Raises:
        NotifyError: there is no such block.
    """
    name = parameters.get("notify") or os.environ.get(VARIABLE)
    return load_notifier(name) if name else None


def announce(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """A state hook: say that a run has ended, and how.

    Raises:
        NotifyError: that cannot be said.
    """
    block = notifier_of(flow_run.parameters)
    if block is None:
        return
    how = state.name or state.type.value
    try:
        # Prefect's own blocks do without awaiting where, as here, no event loop runs.
        block.notify(  # type: ignore[unused-coroutine]
            body=state.message or f"The run is {how}.",
            subject=f"{flow.name}: run {flow_run.name} is {how}")
    except Exception as error:
        # Prefect logs it, and the message may have the webhook's URL in it, which is a secret.
        raise NotifyError("the notification could not be sent "
                          f"({type(error).__name__})") from None
