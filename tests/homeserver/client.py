#!/usr/bin/env python3
"""Plays an ordinary user's client: a login with a password, a device, a cross-signing identity, encryption.

Each run does one thing and prints it as one line of JSON; the device and its keys are in --state. See README.md.
"""
from __future__ import annotations

import argparse
import asyncio
import json
import logging
from pathlib import Path

from mautrix.client import Client, MemoryStateStore
from mautrix.crypto import OlmMachine, PgCryptoStore
from mautrix.errors import EncryptionError
from mautrix.types import EncryptedMegolmEventContent, EventType, PaginationDirection, TrustState
from mautrix.util.async_db import Database

from sender import ENCRYPTED, MESSAGE, RoomState, emit


class Machine(OlmMachine):
    """mautrix's machine, which also notes whom it gave the last room key."""

    shared_with: list[str]

    async def _encrypt_and_share_group_session(self, session, olm_sessions) -> None:
        self.shared_with = sorted(device for devices in olm_sessions.values() for device in devices)
        await super()._encrypt_and_share_group_session(session, olm_sessions)


class User:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args

    async def start(self) -> None:
        folder = Path(self.args.state).resolve()
        folder.mkdir(exist_ok=True)
        self.db = Database.create(f"sqlite://{folder / 'client.db'}", upgrade_table=PgCryptoStore.upgrade_table)
        await self.db.start()
        self.store = PgCryptoStore("", "client", self.db)
        await self.store.open()
        login = folder / "login.json"
        kept = json.loads(login.read_text()) if login.exists() else {}
        self.client = Client(
            kept.get("mxid", ""),
            base_url=self.args.homeserver,
            token=kept.get("token", ""),
            device_id=kept.get("device_id", ""),
            sync_store=self.store,
            state_store=MemoryStateStore(),
        )
        if not kept:
            await self.client.login(self.args.user, password=self.args.password, device_name="phone")
            await self.store.put_device_id(self.client.device_id)
            token = self.client.api.token
            login.write_text(
                json.dumps({"mxid": self.client.mxid, "token": token, "device_id": self.client.device_id})
            )
        self.machine = Machine(self.client, self.store, RoomState(self.client.state_store))
        self.machine.shared_with = []
        self.machine.send_keys_min_trust = self.machine.share_keys_min_trust = TrustState.UNVERIFIED
        await self.machine.load()
        if not self.machine.account.shared:
            await self.machine.share_keys()
            kept = json.loads(login.read_text())
            kept["recovery_key"] = await self.machine.generate_recovery_key()
            login.write_text(json.dumps(kept))
        self.recovery_key = json.loads(login.read_text())["recovery_key"]
        await self.sync()

    async def sync(self) -> None:
        """Takes in everything since the last run."""
        while True:
            news = await self.client.sync(since=await self.store.get_next_batch() or None, timeout=0)
            await asyncio.gather(*self.client.handle_sync(news))
            await self.store.put_next_batch(news["next_batch"])
            if not news.get("to_device", {}).get("events"):
                return

    async def stop(self) -> None:
        await self.client.api.session.close()
        await self.db.stop()

    async def run(self) -> None:
        await self.start()
        try:
            await getattr(self, self.args.action)()
        finally:
            await self.stop()

    async def setup(self) -> None:
        emit(user_id=self.client.mxid, device_id=self.client.device_id, recovery_key=self.recovery_key)

    async def join(self) -> None:
        await self.client.join_room_by_id(self.args.room)
        emit(room_id=self.args.room)

    async def private(self) -> None:
        """A private encrypted room, as a client makes one for two people."""
        encryption = {"type": "m.room.encryption", "content": {"algorithm": "m.megolm.v1.aes-sha2"}}
        invitees = self.args.invite
        room_id = await self.client.create_room(is_direct=True, initial_state=[encryption], invitees=invitees)
        emit(room_id=room_id)

    async def encrypted(self) -> tuple[dict, EncryptedMegolmEventContent]:
        """A text as it is, and as the room's members' devices can read it."""
        room_id = self.args.room
        await self.client.get_state_event(room_id, EventType.ROOM_ENCRYPTION)
        members = await self.client.get_members(room_id)
        users = [m.state_key for m in members if m.content.membership.value in ("join", "invite")]
        # Devices and members may have come since the last run, so each run asks anew and makes a new session.
        if not self.args.prepared:
            await self.machine._fetch_keys(users, include_untracked=True)
            await self.store.remove_outbound_group_session(room_id)
            await self.machine.share_group_session(room_id, users)
        content = {"msgtype": "m.text", "body": self.args.text}
        return content, await self.machine.encrypt_megolm_event(room_id, MESSAGE, content)

    async def encrypt(self) -> None:
        """What a text looks like encrypted, for somebody else to send it."""
        _, wire = await self.encrypted()
        emit(wire=wire.serialize())

    async def say(self) -> None:
        room_id = self.args.room
        content, wire = await self.encrypted()
        event_id = await self.client.send_message_event(room_id, ENCRYPTED, wire)
        emit(
            room_id=room_id, event_id=event_id, session_id=wire.session_id, content=content,
            shared_with=self.machine.shared_with,
        )

    async def prepare(self) -> None:
        """Makes a new session whose key nobody is given."""
        await self.client.get_state_event(self.args.room, EventType.ROOM_ENCRYPTION)
        await self.store.remove_outbound_group_session(self.args.room)
        await self.machine.share_group_session(self.args.room, [])
        emit(room_id=self.args.room)

    async def export(self) -> None:
        """The keys of a room that this device has, as every client exports them."""
        rows = await self.db.fetch(
            "SELECT session_id FROM crypto_megolm_inbound_session WHERE room_id=$1", self.args.room
        )
        keys = []
        for row in rows:
            session = await self.store.get_group_session(self.args.room, row["session_id"])
            keys.append({
                "algorithm": "m.megolm.v1.aes-sha2", "room_id": self.args.room, "session_id": session.id,
                "sender_key": session.sender_key, "sender_claimed_keys": {"ed25519": session.signing_key},
                "session_key": session.export_session(session.first_known_index),
                "forwarding_curve25519_key_chain": [],
            })
        emit(keys=keys)

    async def read(self) -> None:
        """What others said in a room, oldest first, as far as this device can read it."""
        page = await self.client.get_messages(self.args.room, PaginationDirection.BACKWARD, limit=100)
        said, unreadable = {}, []
        for event in reversed(page.events):
            if event.type != ENCRYPTED:
                continue
            try:
                clear = await self.machine.decrypt_megolm_event(event)
                said[event.event_id] = clear.content.serialize().get("body")
            except EncryptionError as error:
                unreadable.append(f"{event.event_id}: {error}")
        emit(said=said, unreadable=unreadable)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--homeserver", required=True, metavar="URL")
    parser.add_argument("--state", required=True, metavar="DIR", help="folder with the login and the keys")
    parser.add_argument("--user", required=True, metavar="NAME")
    parser.add_argument("--password", required=True)
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("setup", help="log in, upload keys and a cross-signing identity")
    room = actions.add_parser("private", help="create a private encrypted room")
    room.add_argument("--invite", action="append", default=[], metavar="MXID")
    for name, does in [
        ("join", "join a room"), ("say", "say something encrypted"),
        ("encrypt", "encrypt something and share its key, but do not send it"), ("read", "read a room"),
        ("export", "print room keys"), ("prepare", "make a session whose key nobody is given"),
    ]:
        action = actions.add_parser(name, help=does)
        action.add_argument("room", metavar="ROOM")
        if name in ("say", "encrypt"):
            action.add_argument("text", metavar="TEXT")
            action.add_argument("--prepared", action="store_true", help="in the session that was prepared")
    args = parser.parse_args()
    logging.getLogger("mau").setLevel(logging.ERROR)
    asyncio.run(User(args).run())


if __name__ == "__main__":
    main()
