"""What people say in bridged rooms beside plain texts: contents as clients and mautrix bridges write them."""
from __future__ import annotations

# Kinds that carry a file: their type, and what the content has beside it.
FILES = {
    "video": ("video/mp4", "mp4", {"msgtype": "m.video"}),
    "audio": ("audio/mpeg", "mp3", {"msgtype": "m.audio"}),
    "voice": ("audio/ogg", "ogg", {"msgtype": "m.audio", "org.matrix.msc3245.voice": {}}),
    "file": ("application/pdf", "pdf", {"msgtype": "m.file"}),
}
# Kinds that refer to what was said before.
RELATED = {"thread", "poll_response", "poll_response_stable", "poll_end", "poll_end_stable"}
POLL = "org.matrix.msc3381.poll"
TEXT = "org.matrix.msc1767.text"


def make(kind: str, text: str, before: str | None) -> tuple[str, dict] | None:
    """The event type and the content of a kind without a file; None when there is no such kind."""
    message = {"msgtype": "m.text", "body": text, "m.mentions": {}}
    reference = {"m.relates_to": {"rel_type": "m.reference", "event_id": before}}
    contents = {
        "html": {**message, "format": "org.matrix.custom.html", "formatted_body": f"<b>{text}</b>"},
        "location": {**message, "msgtype": "m.location", "geo_uri": "geo:48.8584,2.2945;u=35"},
        "mention": {**message, "m.mentions": {"user_ids": ["@owner:localhost"]}},
        "thread": {**message, "m.relates_to": {
            "rel_type": "m.thread", "event_id": before, "is_falling_back": True, "m.in_reply_to": {"event_id": before},
        }},
        "story_reply": {
            **message, "body": f"Replied to your story\n\n{text}", "com.beeper.relation_snippet": "Replied to your story",
            "com.beeper.relation_preview_type": "story", "com.beeper.raw_reply_text": text,
        },
        "view_once": {**message, "msgtype": "m.notice", "fi.mau.unsupported": True},
        "link_preview": {**message, "com.beeper.linkpreviews": [
            {"matched_url": "https://example.org", "og:url": "https://example.org", "og:title": "An example"},
        ]},
        "call_notice": {**message, "msgtype": "m.notice", "com.beeper.action_message": {
            "type": "call", "call_type": "video", "call_state": "ended", "duration": 83,
        }},
        "call_invite": {"call_id": "1", "party_id": "P", "version": "1", "lifetime": 60000, "offer": {
            "type": "offer", "sdp": "v=0\r\nm=audio 9\r\n",
        }},
        "poll": {TEXT: f"{text}\n1. yes\n2. no", f"{POLL}.start": {
            "kind": f"{POLL}.disclosed", "max_selections": 1, "question": {TEXT: text},
            "answers": [{"id": "1", TEXT: "yes"}, {"id": "2", TEXT: "no"}],
        }},
        "poll_response": {**reference, f"{POLL}.response": {"answers": ["1"]}},
        "poll_end": {**reference, TEXT: "The poll has closed.", f"{POLL}.end": {}},
        "poll_stable": {"m.text": [{"body": text}], "m.poll": {
            "kind": "m.disclosed", "max_selections": 1, "question": {"m.text": [{"body": text}]},
            "answers": [{"m.id": "1", "m.text": [{"body": "yes"}]}, {"m.id": "2", "m.text": [{"body": "no"}]}],
        }},
        "poll_response_stable": {**reference, "m.selections": ["1"]},
        "poll_end_stable": {**reference, "m.text": [{"body": "The poll has closed."}]},
        "stranger": {"body": text, "org.example.thing": 1},
    }
    types = {
        "call_invite": "m.call.invite", "poll": f"{POLL}.start", "poll_response": f"{POLL}.response",
        "poll_end": f"{POLL}.end", "poll_stable": "m.poll.start", "poll_response_stable": "m.poll.response",
        "poll_end_stable": "m.poll.end", "stranger": "org.example.type",
    }
    content = contents.get(kind)
    return content and (types.get(kind, "m.room.message"), content)
