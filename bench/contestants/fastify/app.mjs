// Fastify with its schema validation, and ua-parser-js.
//
// It responds once an event is synced. Events that arrive while a batch is synced form the next.

import { randomUUID } from "node:crypto";
import { open } from "node:fs/promises";
import { join } from "node:path";
import Fastify from "fastify";
import { UAParser } from "ua-parser-js";

const file = await open(join(process.env.TELEMETRY_DATA_DIR, "events.jsonl"), "a");

const text = { type: "string", minLength: 1, maxLength: 256 };
const optionalText = { ...text, nullable: true, default: null };
const providers = [
  "auth", "data", "router", "live", "notification", "auditLog", "i18n", "accessControl",
];

const coreSchema = {
  type: "object",
  required: ["providers", "version", "resourceCount"],
  additionalProperties: false,
  properties: {
    providers: {
      type: "object",
      additionalProperties: false,
      properties: Object.fromEntries(
        providers.map((name) => [name, { type: "boolean", default: false }]),
      ),
    },
    version: text,
    resourceCount: { type: "integer", minimum: 0, maximum: 1_000_000 },
    projectId: optionalText,
  },
};

const cliSchema = {
  type: "object",
  required: ["nodeVersion", "packages", "projectFramework"],
  additionalProperties: false,
  properties: {
    nodeEnv: optionalText,
    nodeVersion: text,
    os: optionalText,
    osVersion: optionalText,
    command: optionalText,
    packages: {
      type: "array",
      maxItems: 256,
      items: {
        type: "object",
        required: ["name"],
        additionalProperties: false,
        properties: { name: text, version: optionalText },
      },
    },
    projectFramework: text,
    projectId: optionalText,
  },
};

let waiting = [];
let isWriting = false;

async function writeBatches() {
  isWriting = true;
  while (waiting.length > 0) {
    const batch = waiting;
    waiting = [];
    await file.appendFile(batch.map(({ line }) => line).join(""));
    await file.datasync();
    batch.forEach(({ resolve }) => resolve());
  }
  isWriting = false;
}

function store(event) {
  return new Promise((resolve) => {
    waiting.push({ line: `${JSON.stringify(event)}\n`, resolve });
    if (!isWriting) writeBatches();
  });
}

const app = Fastify();

app.addContentTypeParser("text/plain", { parseAs: "string" }, (request, body, done) => {
  try {
    done(null, JSON.parse(Buffer.from(body, "base64").toString()));
  } catch (error) {
    error.statusCode = 400;
    done(error);
  }
});

const newEvent = (source, request) => ({
  id: randomUUID(),
  received_at: new Date().toISOString(),
  source,
  ip: request.ip,
});

app.post("/", { schema: { body: coreSchema } }, async (request, reply) => {
  const { browser, os } = UAParser(request.headers["user-agent"]);
  const { origin } = request.headers;
  await store({
    ...newEvent("core", request),
    hostname: origin && URL.canParse(origin) ? new URL(origin).hostname : null,
    browser: browser.name ?? null,
    browser_version: browser.version ?? null,
    os: os.name ?? null,
    os_version: os.version ?? null,
    payload: request.body,
  });
  return reply.code(204).send();
});

app.post("/cli", { schema: { body: cliSchema } }, async (request, reply) => {
  await store({ ...newEvent("cli", request), payload: request.body });
  return reply.code(204).send();
});

process.on("SIGTERM", () => app.close());
console.error(`Listening at: ${await app.listen({ host: "127.0.0.1", port: 0 })}`);
