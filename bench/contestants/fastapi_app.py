"""FastAPI with pydantic, for uvicorn with uvloop and httptools.

It responds once an event is synced.  Events that arrive while a thread syncs a batch
form the next.
"""

import asyncio
import base64
import json
import os
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from fastapi import FastAPI, HTTPException, Request, Response
from pydantic import BaseModel, Field, StringConstraints
from ua_parser import OS, UserAgent, parse

PATH = Path(os.environ["TELEMETRY_DATA_DIR"], "events.jsonl")
FD = os.open(PATH, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

Text = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Provider = Literal[
    "auth", "data", "router", "live", "notification", "auditLog", "i18n", "accessControl"
]


class Core(BaseModel):
    providers: dict[Provider, bool]
    version: Text
    resourceCount: Annotated[int, Field(ge=0, le=1_000_000)]
    projectId: Text | None = None


class Package(BaseModel):
    name: Text
    version: Text | None = None


class Cli(BaseModel):
    nodeEnv: Text | None = None
    nodeVersion: Text
    os: Text | None = None
    osVersion: Text | None = None
    command: Text | None = None
    packages: Annotated[list[Package], Field(max_length=256)]
    projectFramework: Text
    projectId: Text | None = None


waiting: list[tuple[bytes, asyncio.Future[None]]] = []
arrived = asyncio.Event()


async def store(event: dict[str, Any]) -> Response:
    line = json.dumps(event, separators=(",", ":")).encode() + b"\n"
    stored = asyncio.get_running_loop().create_future()
    waiting.append((line, stored))
    arrived.set()
    await stored
    return Response(status_code=204)


async def write_batches() -> None:
    while True:
        await arrived.wait()
        arrived.clear()
        batch = waiting.copy()
        waiting.clear()
        await asyncio.to_thread(write, b"".join(line for line, _ in batch))
        for _, stored in batch:
            stored.set_result(None)


def write(lines: bytes) -> None:
    os.write(FD, lines)
    os.fsync(FD)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    writer = asyncio.create_task(write_batches())
    yield
    writer.cancel()


app = FastAPI(lifespan=lifespan)


@app.post("/", status_code=204)
async def core(request: Request) -> Response:
    try:
        payload = Core.model_validate_json(base64.b64decode(await request.body()))
    except ValueError as exc:
        raise HTTPException(400, str(exc)) from exc
    agent = parse(request.headers.get("user-agent", ""))
    seen = {
        "hostname": urlsplit(request.headers.get("origin", "")).hostname,
        "browser": agent.user_agent and agent.user_agent.family,
        "browser_version": version_of(agent.user_agent),
        "os": agent.os and agent.os.family,
        "os_version": version_of(agent.os),
    }
    return await store(new_event("core", request) | seen | {"payload": payload.model_dump()})


@app.post("/cli", status_code=204)
async def cli(payload: Cli, request: Request) -> Response:
    return await store(new_event("cli", request) | {"payload": payload.model_dump()})


def new_event(source: str, request: Request) -> dict[str, Any]:
    return {
        "id": str(uuid.uuid4()),
        "received_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "source": source,
        "ip": request.client and request.client.host,
    }


def version_of(found: UserAgent | OS | None) -> str | None:
    if found is None:
        return None
    return ".".join(part for part in (found.major, found.minor, found.patch) if part) or None
