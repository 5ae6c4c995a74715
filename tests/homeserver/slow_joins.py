"""A module of Synapse's that holds a join back after it has its place in the room's graph.

What is said meanwhile refers to the same event as the join: a fork, on which the message is the first to be stored. Between
people this happens when somebody speaks in the moment in which somebody else joins.
"""
from __future__ import annotations


class SlowJoins:
    def __init__(self, config: dict, api) -> None:
        self.users, self.seconds, self.api = tuple(config["users"]), config["seconds"], api
        api.register_third_party_rules_callbacks(check_event_allowed=self.check_event_allowed)

    async def check_event_allowed(self, event, state_events):
        is_join = event.type == "m.room.member" and event.content.get("membership") == "join"
        if is_join and event.state_key.startswith(self.users):
            await self.api.sleep(self.seconds)
        return True, None
