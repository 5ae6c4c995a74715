"""What today's bridges and clients write beside what kinds.py has: odd, but authentic.

Bridges: mautrix-instagram and mautrix-meta 26.08, bridgev2, Beeper's clients. Clients: galleries, extensible events,
profiles of a message, spoilers, and the fallbacks of older ones.
"""
from __future__ import annotations

from typing import Awaitable, Callable, NamedTuple

HTML = "org.matrix.custom.html"
STORY = "https://www.instagram.com/stories/owner/3141592653589793238?reel_id=17841400000000000"
REEL = "https://www.instagram.com/reel/C1abcDEfghI/?id=3141592653589793238_1784"
# Kinds that refer to what was said before.
RELATED = {
    "reply_name", "reply_only_quotation", "edit_quoting", "edit_only_quotation", "profile_edit", "gallery_edit",
    "share_fetched", "reaction_picture", "reply_hidden", "location_live", "status", "error_notice", "error_edit",
}

Upload = Callable[[bytes, str], Awaitable[dict]]


class Made(NamedTuple):
    """An event to be sent: by the ghost, and encrypted where the room is, unless it says otherwise."""

    type: str
    content: dict
    by_bot: bool = False
    plain: bool = False


class Writer:
    """Writes contents that say `text`; files are uploaded as they are needed."""

    def __init__(self, text: str, before: str | None, upload: Upload) -> None:
        self.text, self.before, self.upload = text, before, upload

    async def file(self, name: str, mime: str) -> dict:
        """A file of so many lines, each its name."""
        return await self.upload(f"{name}\n".encode() * 200, mime)

    async def key(self, name: str, mime: str, url: str, key: str) -> dict:
        """The same under other members: the address alone, or the key with the address in it."""
        file = await self.file(name, mime)
        return {key: file["file"]} if "file" in file else {url: file["url"]}

    async def media(self, name: str, mime: str, **more) -> dict:
        return {"body": name, "info": {"mimetype": mime, "size": 200 * (len(name) + 1)}, **await self.file(name, mime), **more}

    def message(self, msgtype: str = "m.text", **more) -> dict:
        return {"msgtype": msgtype, "body": self.text, "m.mentions": {}, **more}

    def html(self, html: str, **more) -> dict:
        return self.message(format=HTML, formatted_body=html, **more)

    def notice(self, body: str, **more) -> Made:
        return Made("m.room.message", {**self.message("m.notice"), "body": body, **more})

    def answer(self) -> dict:
        return {"m.relates_to": {"m.in_reply_to": {"event_id": self.before}}}

    def edit(self, new: dict, **more) -> Made:
        relation = {"rel_type": "m.replace", "event_id": self.before}
        fallback = {key: value for key, value in new.items() if key not in ("format", "formatted_body", "itemtypes")}
        body = f"* {new['body']}"
        return Made("m.room.message", {**fallback, "body": body, "m.new_content": new, "m.relates_to": relation, **more})

    # Replies and quotations.

    async def reply_name(self) -> Made:
        body = f"> <Alice A.> where?\n> and when?\n\n{self.text}"
        return Made("m.room.message", {**self.message(), "body": body, **self.answer()})

    async def reply_only_quotation(self) -> Made:
        return Made("m.room.message", {**self.message(), "body": "> <@owner:localhost> where?", **self.answer()})

    async def reply_hidden(self) -> Made:
        return Made("m.room.message", {**self.message(), **self.answer()})

    async def edit_quoting(self) -> Made:
        return self.edit({**self.message(), "body": f"> a line of a poem\n\n{self.text}"})

    async def edit_only_quotation(self) -> Made:
        return self.edit({**self.message(), "body": "> <@owner:localhost> where?"})

    # Several files.

    async def gallery(self) -> Made:
        items = [
            await self.media("one.png", "image/png", itemtype="m.image"),
            await self.media("two.mp4", "video/mp4", itemtype="m.video", filename="two.mp4"),
            await self.media("three.pdf", "application/pdf", itemtype="m.file"),
        ]
        items[0]["info"] |= await self.key("small.png", "image/png", "thumbnail_url", "thumbnail_file")
        items[1]["body"] = "the tower"
        return Made("m.room.message", {**self.message("dm.filament.gallery"), "itemtypes": items})

    async def gallery_edit(self) -> Made:
        items = [await self.media("one.png", "image/png", itemtype="m.image")]
        return self.edit({**self.message("m.gallery"), "itemtypes": items})

    async def gallery_beeper(self) -> Made:
        images = [await self.media(name, "image/png", msgtype="m.image") for name in ("one.png", "two.png")]
        content = {"com.beeper.gallery.images": images, "com.beeper.gallery.caption": self.text}
        return Made("m.room.message", {**self.message("com.beeper.gallery"), "body": "Sent a gallery", **content})

    async def album(self) -> Made:
        album = {"fi.mau.album": {"id": "album 1", "index": 0, "count": 2}}
        return Made("m.room.message", {"msgtype": "m.image", **await self.media("one.png", "image/png"), **album})

    async def sticker_message(self) -> Made:
        return Made("m.room.message", {"msgtype": "m.sticker", **await self.media("cat.webp", "image/webp")})

    # Extensible events.

    async def extensible_text(self) -> Made:
        words = [{"mimetype": "text/html", "body": f"<b>{self.text}</b>"}, {"body": self.text}]
        return Made("m.message", {"m.text": words})

    async def extensible_untyped(self) -> Made:
        return Made("m.room.message", {"org.matrix.msc1767.text": self.text})

    async def extensible_image(self) -> Made:
        file = await self.file("logo.png", "image/png")
        place = {"name": "logo.png", "mimetype": "image/png", **file.get("file", file)}
        caption = {"m.text": [{"body": self.text}]}
        return Made("m.image", {"m.text": [{"body": "logo.png"}], "m.file": place, "m.caption": caption})

    async def location_block(self) -> Made:
        block = {"uri": "geo:48.8584,2.2945;u=35", "description": "the tower"}
        return Made("m.room.message", {**self.message("m.location"), "org.matrix.msc3488.location": block})

    async def location_live(self) -> Made:
        block = {"uri": "geo:48.8584,2.2945;u=10"}
        relation = {"rel_type": "m.reference", "event_id": self.before}
        return Made("org.matrix.msc3672.beacon", {"org.matrix.msc3488.location": block, "m.relates_to": relation})

    # Profiles, spoilers, people who are meant.

    async def profile(self) -> Made:
        profile = {"id": "meow", "displayname": "cat <3", "has_fallback": True}
        profile |= await self.key("cat.png", "image/png", "avatar_url", "avatar_file")
        fallback = "<strong data-mx-profile-fallback>cat &lt;3: </strong>"
        content = self.html(f"{fallback}<b>{self.text}</b>", **{"com.beeper.per_message_profile": profile})
        return Made("m.room.message", {**content, "body": f"cat <3: {self.text}"})

    async def profile_edit(self) -> Made:
        profile = {"m.per_message_profile": {"id": "meow", "displayname": "cat", "avatar_url": ""}}
        return self.edit({**self.message(), **profile})

    async def spoiler_media(self) -> Made:
        prefix = "page.codeberg.everypizza.msc4193.spoiler"
        marks = {prefix: True, f"{prefix}.reason": "the end"}
        return Made("m.room.message", {"msgtype": "m.image", **await self.media("end.png", "image/png"), **marks})

    async def spoiler_text(self) -> Made:
        return Made("m.room.message", self.html(f"it was <span data-mx-spoiler=\"the end\">{self.text}</span>"))

    async def content_warning(self) -> Made:
        warning = {"type": "town.robin.msc3725.graphic", "description": "blood"}
        return Made("m.room.message", {**self.message(), "town.robin.msc3725.content_warning": warning})

    async def mention_pills(self) -> Made:
        links = "<a href=\"https://matrix.to/#/@owner:localhost\">Owner</a> <a href=\"matrix:u/bob:localhost\">Bob</a>"
        return Made("m.room.message", self.html(f"{links} {self.text}"))

    async def mention_room(self) -> Made:
        return Made("m.room.message", self.html(f"<a href=\"https://matrix.to/#/!a:localhost\">@room</a> {self.text}"))

    # Instagram and Messenger, 26.08.

    async def preview(self, url: str, title: str) -> dict:
        picture = await self.key("preview.jpg", "image/jpeg", "og:image", "beeper:image:encryption")
        sizes = {"og:image:type": "image/jpeg", "og:image:width": 640, "matrix:image:size": 2200}
        return {"matched_url": url, "og:url": url, "og:title": title, **sizes, **picture}

    async def link_picture(self) -> Made:
        previews = [await self.preview("https://example.org/a", "An example")]
        return Made("m.room.message", {**self.message(), "com.beeper.linkpreviews": previews})

    async def story_text(self) -> Made:
        # The text has no formatting of its own: then the HTML is the quotation alone, and no format is stated.
        previews = [await self.preview(STORY, "owner")]
        quotation = "<blockquote>Replied to your story</blockquote>"
        return Made("m.room.message", {**self.message(formatted_body=quotation), "com.beeper.linkpreviews": previews})

    async def story_picture(self) -> Made:
        return Made("m.room.message", {
            "msgtype": "m.image", **await self.media("preview.jpg", "image/jpeg", filename="preview.jpg"),
            "body": f"> Replied to your story\n\n**owner**\n\n{STORY.split('?')[0]}", "format": HTML,
            "formatted_body": caption("Replied to your story", "owner", "", STORY),
            "external_url": STORY, "fi.mau.instagram.xma_fetch_status": "fetch fail",
        })

    async def share(self, msgtype: str, name: str, mime: str) -> dict:
        return {
            "msgtype": msgtype, **await self.media(name, mime, filename=name), "m.mentions": {}, "external_url": REEL,
            "body": f"**bob**\nA day out\n\n{self.text}", "format": HTML,
            "formatted_body": caption("", "bob", "A day out", REEL, self.text),
        }

    async def share_reel(self) -> Made:
        content = await self.share("m.image", "preview.jpg", "image/jpeg")
        base = {key: content[key] for key in ("msgtype", "body", "formatted_body", "info")}
        unresolved = {"kind": "permanent", "fi.mau.instagram.base_part": base}
        marks = {"fi.mau.instagram.xma_fetch_status": "skip", "com.beeper.unresolved_media": unresolved}
        return Made("m.room.message", {**content, **marks})

    async def share_fetched(self) -> Made:
        new = await self.share("m.video", "reel.mp4", "video/mp4")
        new["info"] |= await self.key("preview.jpg", "image/jpeg", "thumbnail_url", "thumbnail_file")
        return self.edit(new, **{"com.beeper.dont_render_edited": True})

    async def share_text(self) -> Made:
        return Made("m.room.message", self.html(caption("", "bob", "A day out", REEL)))

    async def once(self) -> Made:
        return self.notice("This image can only be viewed once. Use the Instagram app to view.")

    async def unsupported(self) -> Made:
        details = {"fi.mau.meta.unsupported_slide_content": {"__typename": "SlideMessageUnknown"}}
        return self.notice("Unsupported message. Use the Instagram app to view.", **details)

    async def call_words(self) -> Made:
        return self.notice("You missed a video call with Alice")

    async def bridge_failure(self) -> Made:
        error = {"fi.mau.bridge.internal_error": "unexpected end of JSON input"}
        return self.notice("An error occurred while processing an incoming message", **error)

    async def messenger_story(self) -> Made:
        quotation = "<blockquote>Reply to <a href=\"https://www.facebook.com/stories/1/2\">Facebook story</a>:</blockquote>"
        return Made("m.room.message", self.html(f"{quotation}<p>{self.text}</p>"))

    async def messenger_share(self) -> Made:
        texts = {"com.beeper.meta.full_post_title": "Alice", "com.beeper.meta.caption_body_text": self.text}
        content = await self.media("post.jpg", "image/jpeg", filename="post.jpg")
        url = {"external_url": "https://www.facebook.com/alice/posts/1"}
        return Made("m.room.message", {"msgtype": "m.image", **content, "body": url["external_url"], **url, **texts})

    # Files in odd places.

    async def file_beside(self) -> Made:
        file = await self.file("photo.jpg", "image/jpeg")
        key = file.get("file", {})
        beside = {"url": key.pop("url"), "file": key} if key else file
        return Made("m.room.message", {**self.message("m.image"), "body": "photo.jpg", **beside})

    async def file_unknown(self) -> Made:
        layers = [await self.file("layer.png", "image/png")]
        content = await self.media("scan.dcm", "application/dicom")
        return Made("m.room.message", {"msgtype": "org.example.scan", **content, "org.example.layers": layers})

    async def inline_image(self) -> Made:
        url = (await self.upload_plain("cat.png", "image/png"))["url"]
        return Made("m.room.message", self.html(f"{self.text} <img data-mx-emoticon src=\"{url}\" alt=\":cat:\">"))

    async def reaction_picture(self) -> Made:
        url = (await self.upload_plain("cat.png", "image/png"))["url"]
        relation = {"rel_type": "m.annotation", "event_id": self.before, "key": url}
        return Made("m.reaction", {"m.relates_to": relation}, plain=True)

    async def upload_plain(self, name: str, mime: str) -> dict:
        return await self.upload(f"{name}\n".encode() * 200, mime, encrypt=False)

    # What is no message.

    async def status(self) -> Made:
        relation = {"rel_type": "m.reference", "event_id": self.before}
        content = {"network": "instagram", "m.relates_to": relation, "status": "FAIL_RETRIABLE"}
        return Made("com.beeper.message_send_status", {**content, "reason": "m.foreign_network_error"}, True, True)

    async def error_notice(self) -> Made:
        body = "\u26a0\ufe0f Your message may not have been bridged: timed out"
        return Made("m.room.message", {**self.message("m.notice"), "body": body, **self.answer()}, True, True)

    async def error_edit(self) -> Made:
        new = (await self.error_notice()).content
        return self.edit(new)._replace(by_bot=True, plain=True)

    async def verification(self) -> Made:
        request = {"from_device": "DEVICE", "methods": ["m.sas.v1"], "to": "@coucou:localhost"}
        return Made("m.room.message", {**self.message("m.key.verification.request"), **request})

    async def verification_step(self) -> Made:
        return Made("m.key.verification.cancel", {"code": "m.user", "reason": "no", "m.relates_to": {}})


def caption(heading: str, title: str, subtitle: str, url: str, words: str = "") -> str:
    """The caption that mautrix-instagram makes of what is shared."""
    parts = [
        f"<blockquote>{heading}</blockquote>" if heading else "",
        f"<strong>{title}</strong>",
        f"<br>{subtitle}" if subtitle else "",
        f"<p>{words}</p>" if words else "",
        f"<p><a href=\"{url}\">{url.split('?')[0]}</a></p>",
    ]
    return "".join(parts)


HELPERS = {"file", "key", "media", "message", "html", "notice", "answer", "edit", "preview", "share", "upload_plain"}
KINDS = {name for name in vars(Writer) if not name.startswith("_")} - HELPERS


async def make(kind: str, text: str, before: str | None, upload: Upload) -> Made | None:
    """The event of a kind; None when there is no such kind."""
    return await getattr(Writer(text, before, upload), kind)() if kind in KINDS else None
