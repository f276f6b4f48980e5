"""The Flask app most people would write: get_json, a rotating log handler, a sync worker.

Nothing is synced; and were there two workers, the second to roll the file over
at midnight would erase the day.
"""

import base64
import json
import logging
import os
import uuid
from datetime import UTC, datetime
from logging.handlers import TimedRotatingFileHandler
from pathlib import Path
from urllib.parse import urlsplit

from flask import Flask, abort, request
from ua_parser import parse

PROVIDERS = ("auth", "data", "router", "live", "notification", "auditLog", "i18n", "accessControl")

handler = TimedRotatingFileHandler(
    Path(os.environ["DATA_DIR"]) / "events.jsonl", when="midnight", utc=True
)
handler.setFormatter(logging.Formatter("%(message)s"))
events = logging.getLogger("events")
events.setLevel(logging.INFO)
events.addHandler(handler)
events.propagate = False

app = Flask(__name__)


@app.post("/")
def core():
    try:
        payload = json.loads(base64.b64decode(request.get_data()))
    except ValueError:
        abort(400, "the body is not Base64 of JSON")
    providers = require(payload, "providers", dict)
    agent = parse(request.headers.get("User-Agent", ""))
    store(
        {
            **new_event("core"),
            "hostname": urlsplit(request.headers.get("Origin", "")).hostname,
            "browser": agent.user_agent and agent.user_agent.family,
            "browser_version": agent.user_agent and version_of(agent.user_agent),
            "os": agent.os and agent.os.family,
            "os_version": agent.os and version_of(agent.os),
            "payload": {
                "providers": {name: bool(providers.get(name)) for name in PROVIDERS},
                "version": require(payload, "version", str),
                "resourceCount": require(payload, "resourceCount", int),
                "projectId": optional(payload, "projectId"),
            },
        }
    )
    return "", 204


@app.post("/cli")
def cli():
    payload = request.get_json()
    store(
        {
            **new_event("cli"),
            "payload": {
                "nodeEnv": optional(payload, "nodeEnv"),
                "nodeVersion": require(payload, "nodeVersion", str),
                "os": optional(payload, "os"),
                "osVersion": optional(payload, "osVersion"),
                "command": optional(payload, "command"),
                "packages": [
                    {"name": require(package, "name", str), "version": optional(package, "version")}
                    for package in require(payload, "packages", list)
                ],
                "projectFramework": require(payload, "projectFramework", str),
                "projectId": optional(payload, "projectId"),
            },
        }
    )
    return "", 204


def require(payload, field, kind):
    if not isinstance(payload, dict) or not isinstance(payload.get(field), kind):
        abort(400, f"{field} is missing or not valid")
    return payload[field]


def optional(payload, field):
    return require(payload, field, str) if payload.get(field) is not None else None


def version_of(found):
    return ".".join(part for part in (found.major, found.minor, found.patch) if part) or None


def new_event(source):
    received_at = datetime.now(UTC).isoformat(timespec="milliseconds")
    return {
        "id": str(uuid.uuid4()),
        "received_at": received_at.replace("+00:00", "Z"),
        "source": source,
        "ip": request.remote_addr,
    }


def store(event):
    events.info(json.dumps(event, separators=(",", ":")))
