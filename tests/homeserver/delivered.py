#!/usr/bin/env python3
"""Waits until `coucou listen --json` has printed what sender.py said last, and shows it."""
import argparse
import json
import sys
import time
from pathlib import Path


def lines(path: Path) -> list[dict]:
    """The complete lines of a file that somebody may still write to."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1] if line.startswith("{")]


def find(received: Path, event_id: str) -> dict | None:
    for line in lines(received):
        if line["body"]["data"].get("event_id") == event_id:
            return line
    return None


def check(line: dict, said: dict) -> None:
    data = line["body"]["data"]
    expected = {
        "verified": (line["verified"], True),
        "text": (data["content"]["text"], said["content"]["body"]),
        "network": (data["network"], "instagram"),
        "encrypted": (data["encryption"]["encrypted"], True),
        "session": (data["encryption"]["session_id"], said["session_id"]),
        "sender": (data["sender"]["mxid"], said["sender"]),
    }
    for name, (is_, should_be) in expected.items():
        if is_ != should_be:
            sys.exit(f"the delivery's {name} is {is_!r}, not {should_be!r}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--said", type=Path, required=True, metavar="FILE", help="what sender.py printed")
    parser.add_argument("--received", type=Path, required=True, metavar="FILE", help="what coucou listen printed")
    parser.add_argument("--timeout", type=float, default=60, metavar="SECONDS")
    args = parser.parse_args()
    said = lines(args.said)[-1]
    deadline = time.monotonic() + args.timeout
    while not (line := find(args.received, said["event_id"])):
        if time.monotonic() > deadline:
            sys.exit(f"{said['event_id']} was not delivered within {args.timeout:.0f} s")
        time.sleep(0.05)
    check(line, said)
    print(json.dumps(line["body"], indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
