"""The agent's own conversation id behind a front end's, kept for a week after its last use."""

from __future__ import annotations

from shared import keys
from shared.broker import Broker


class Conversations:
    """Looked up when a run is admitted, written when its agent tells its ids."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def find(self, tenant: str, agent: str, conversation: str) -> str | None:
        """The agent's id, if it has told one."""
        key = keys.conversation(tenant, agent, conversation)
        found = await self._broker.call("GETEX", key, "EX", keys.CONVERSATION_SECONDS)
        return None if found is None else found.decode()

    async def remember(self, tenant: str, agent: str, conversation: str, agent_id: str) -> None:
        """Keep the agent's id."""
        key = keys.conversation(tenant, agent, conversation)
        await self._broker.call("SET", key, agent_id, "EX", keys.CONVERSATION_SECONDS)
