"""What the fuzzer has to know of coucou beyond its description: tokens, and values that nobody can make up."""

import itertools, json, os
from urllib.parse import parse_qsl, urlsplit

import schemathesis
from schemathesis import GenerationMode

with open(os.environ["COUCOU_FUZZ"]) as file:
    told = json.load(file)
admin, read = itertools.cycle(told["admin"]), itertools.cycle(told["read"])
turn = itertools.count()

# What answers have told: cursors by path, and addresses of files by path.
cursors: dict[str, list[str]] = {}
files: dict[str, list[dict[str, str]]] = {}
known = {"network_or_id": ["instagram"], "room_id": [], "delivery_id": [], "id": [], "name": ["default", "refusing"]}
MOST = 50


@schemathesis.auth(refresh_interval=None)
class Tokens:
    """Every fourth request shows a token that may only look."""

    def get(self, case, context):
        if "/api/" not in case.operation.path and case.operation.path != "/metrics":
            return told["hs_token"]
        return next(read if next(turn) % 4 == 0 else admin)

    def set(self, case, data, context):
        case.headers = {**(case.headers or {}), "Authorization": f"Bearer {data}"}


def is_positive(case):
    return case.meta is not None and case.meta.generation.mode == GenerationMode.POSITIVE


@schemathesis.hook
def map_case(context, case):
    if not is_positive(case) or not case.operation.path.startswith("/api/"):
        return case
    choose = next(turn)

    def pick(values):
        return values[choose % len(values)]

    query, path = case.query or {}, case.path_parameters or {}
    for name in path:
        if choose % 3 and known.get(name):
            path[name] = pick(known[name])
    if files and "/media/" in case.operation.path and choose % 3:
        of = [at for at in files if at.endswith("/thumbnail") == case.operation.path.endswith("/thumbnail")]
        if of:
            path["id"] = pick(of).split("/")[4]
            query.update(pick(files[pick(of)]))
    body = case.body if isinstance(case.body, dict) else {}
    for place in (query, body):
        # Opaque: those that coucou gave out are the valid ones.
        for name in ("cursor", "after"):
            if name in place:
                given = cursors.get(list_of(case.formatted_path, place))
                place.pop(name)
                if given:
                    place[name] = pick(given)
        # The limits are bytes, which a schema cannot say.
        for name in ("room", "reason"):
            if isinstance(place.get(name), str):
                place[name] = pick(known["room_id"]) if name == "room" and known["room_id"] and choose % 2 else place[name][:60]
        if place.get("since") and place.get("until"):
            place["since"], place["until"] = sorted((place["since"], place["until"]))
    for name in ("room_id", "name"):
        if name in path:
            path[name] = path[name][:60]
    if "webhook" in query:
        query["webhook"] = pick(known["name"])
    if str(path.get("network_or_id", "")).startswith("msg_"):
        query.clear()
    return case


@schemathesis.hook
def after_call(context, case, response):
    """Learns from what is answered."""
    if response.status_code != 200 or "json" not in response.headers.get("content-type", [""])[0]:
        return
    address = urlsplit(response.request.url)
    learn(list_of(address.path, dict(parse_qsl(address.query))), response.json())


def list_of(path, query):
    """What a cursor is of: deliveries that are pending or dead are a list of their own."""
    path = path.split("?")[0]
    return path + "/open" if path.endswith("/deliveries") and query.get("status") in ("pending", "dead") else path


def learn(path, answer):
    def keep(kind, value):
        if value not in kind and len(kind) < MOST:
            kind.append(value)

    for name in ("next", "cursor"):
        if isinstance(answer.get(name), str):
            keep(cursors.setdefault(path, []), answer[name])
    for message in answer.get("messages", []):
        keep(known["network_or_id"], message["id"])
        for address in addresses(message.get("media") or {}):
            parts = urlsplit(address)
            keep(files.setdefault(parts.path, []), dict(parse_qsl(parts.query)))
    for room in answer.get("rooms", []) if path.endswith("/rooms") else []:
        keep(known["room_id"], room["id"])
    for delivery in answer.get("deliveries", []) if path.endswith("/deliveries") else []:
        keep(known["delivery_id"], delivery["id"])


def addresses(media):
    yield from [media["url"]] if media.get("url") else []
    thumbnail = media.get("thumbnail") or {}
    yield from [thumbnail["url"]] if thumbnail.get("url") else []


@schemathesis.check
def a_token_that_may_only_look_changes_nothing(ctx, response, case):
    token = response.request.headers.get("Authorization", "").removeprefix("Bearer ")
    if token in told["read"] and case.method == "POST" and response.status_code not in (403, 405):
        raise AssertionError(f"{response.status_code} for a token of the scope read")


@schemathesis.check
def nobody_is_slowed_down(ctx, response, case):
    """Else what is fuzzed is the limit."""
    token = response.request.headers.get("Authorization", "").removeprefix("Bearer ")
    if response.status_code == 429 and token in told["read"] + told["admin"]:
        raise AssertionError("the fuzzer has not enough tokens")


@schemathesis.check
def a_refusal_is_a_problem(ctx, response, case):
    if response.status_code < 400 or not case.operation.path.startswith("/api/") or case.method == "HEAD":
        return
    problem = response.json()
    assert problem["status"] == response.status_code and problem["code"] and problem["detail"]
    assert problem["request_id"] == response.headers["x-request-id"][0]
