// Tells a telemetry server that a command ran.  A detached process sends the event, so that the
// command neither waits for it nor fails with it.

import { spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { release } from "node:os";
import { basename, dirname, join } from "node:path";

const MAX_TEXT_CHARS = 256; // the server rejects more, of characters and of packages
const MAX_PACKAGES = 256;
const MAX_EVENT_BYTES = 30_000; // an environment variable of Windows holds 32,767 characters
const NO_OPT_OUT = ["", "0", "false", "no", "off"];
// npm's rule: no name may lead out of node_modules.
const PACKAGE_NAME = /^(@[a-z\d~-][a-z\d._~-]*\/)?[a-z\d~-][a-z\d._~-]*$/i;
// The only variables of Node that the sender inherits.  Others are meant for the command, such as
// --inspect-brk in NODE_OPTIONS, or NODE_V8_COVERAGE, which writes a file at exit.
const KEPT_NODE_VARIABLES = ["NODE_EXTRA_CA_CERTS", "NODE_USE_ENV_PROXY"];
const OS_NAMES = { darwin: "macOS", linux: "Linux", win32: "Windows" };

// The program of the detached process.
const SENDER = `
  fetch(process.env.EVENT_URL, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: process.env.EVENT,
    redirect: "error",
    signal: AbortSignal.timeout(3000),
  }).finally(() => process.exit());
`;

/**
 * Send one event for a command.  Returns at once, prints nothing and never throws.
 *
 * Nothing is sent if the user has opted out: REFINE_NO_TELEMETRY, DO_NOT_TRACK or the variable that
 * `optOut` names is set to anything but an empty string, 0, false, no or off.
 *
 * @param {object} options
 * @param {string} options.url The full URL, such as "https://telemetry.example.com/cli".
 * @param {string} options.command The command that ran, such as "dev".
 * @param {string} [options.projectId] The project's own identifier, if it has one.
 * @param {string} [options.projectFramework] What the project is built with, such as "vite".
 * @param {string} [options.packages] The prefix of the packages to report, such as "@refinedev/":
 *   of the dependencies and devDependencies of the nearest package.json, with their installed
 *   versions.  None by default.
 * @param {string} [options.optOut] Another environment variable to opt out.
 */
export function sendTelemetry(options) {
  try {
    const { url, command, projectId, projectFramework, packages, optOut } = options;
    // In a single executable with Node inside, execPath would start the tool again.
    if (!basename(process.execPath).startsWith("node")) return;
    if (["REFINE_NO_TELEMETRY", "DO_NOT_TRACK", optOut].some(isSet)) return;
    send(url, {
      nodeEnv: process.env.NODE_ENV || "development",
      nodeVersion: process.version,
      os: OS_NAMES[process.platform] ?? process.platform,
      osVersion: release(),
      command,
      packages: packages ? findPackages(packages) : [],
      projectFramework: projectFramework || "unknown",
      projectId,
    });
  } catch {
    // A command must not fail because its telemetry does.
  }
}

function isSet(name) {
  return !NO_OPT_OUT.includes((process.env[name] ?? "").trim().toLowerCase());
}

function send(url, event) {
  const child = spawn(process.execPath, ["--eval", SENDER], {
    detached: true,
    stdio: "ignore",
    windowsHide: true,
    cwd: dirname(process.execPath), // on Windows a directory in use cannot be deleted
    env: {
      ...withoutNodeVariables(process.env),
      EVENT_URL: url,
      EVENT: encode(event),
      NODE_V8_COVERAGE: "", // if it were missing, spawn() would pass it on
      DO_NOT_TRACK: "1", // should this start the tool again after all, it will not recurse
    },
  });
  child.on("error", () => {});
  child.unref();
}

function withoutNodeVariables(env) {
  const isKept = (name) => !name.startsWith("NODE_") || KEPT_NODE_VARIABLES.includes(name);
  return Object.fromEntries(Object.entries(env).filter(([name]) => isKept(name)));
}

/** The event as JSON, without the last packages if it would be too long. */
function encode(event) {
  const packages = [...event.packages];
  let text = JSON.stringify(event, clean);
  while (Buffer.byteLength(text) > MAX_EVENT_BYTES && packages.pop()) {
    text = JSON.stringify({ ...event, packages }, clean);
  }
  return text;
}

/** Make texts valid for the server. */
function clean(_, value) {
  if (typeof value !== "string") return value;
  return [...value.replace(/\p{Cc}|\p{Cs}/gu, "")].slice(0, MAX_TEXT_CHARS).join("");
}

/** Name and version of the packages with this prefix in the nearest package.json. */
function findPackages(prefix) {
  const project = upwards(process.cwd()).find((directory) => isProject(readPackage(directory)));
  if (!project) return [];
  const { dependencies, devDependencies } = readPackage(project);
  return Object.keys({ ...dependencies, ...devDependencies })
    .filter((name) => name.startsWith(prefix))
    .slice(0, MAX_PACKAGES)
    .map((name) => ({ name, version: installedVersion(name, project) }));
}

/** A package.json with only a "type", as bundlers write it, belongs to no project. */
function isProject(found) {
  return Boolean(found?.name || found?.dependencies || found?.devDependencies);
}

/** The version of the package that Node would load in the project, or null. */
function installedVersion(name, project) {
  if (!PACKAGE_NAME.test(name)) return null;
  const directories = upwards(project).map((directory) => join(directory, "node_modules", name));
  const found = [...directories, plugAndPlayDirectory(name, project)].map(readPackage).find(Boolean);
  return typeof found?.version === "string" ? found.version : null;
}

/** The directory of the package with Yarn's Plug'n'Play, which has no node_modules. */
function plugAndPlayDirectory(name, project) {
  if (!process.versions.pnp) return undefined;
  try {
    const { resolveToUnqualified } = createRequire(join(project, "package.json"))("pnpapi");
    return resolveToUnqualified(name, join(project, "package.json"));
  } catch {
    return undefined;
  }
}

/** The directory's package.json, or undefined if it cannot be read. */
function readPackage(directory) {
  try {
    const text = readFileSync(join(directory, "package.json"), "utf8");
    return JSON.parse(text.replace(/^\uFEFF/, ""));
  } catch {
    return undefined;
  }
}

/** The directory and all its parents. */
function upwards(directory) {
  const parent = dirname(directory);
  return parent === directory ? [directory] : [directory, ...upwards(parent)];
}
