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
const OPT_OUTS = ["REFINE_NO_TELEMETRY", "DO_NOT_TRACK"];
const BUILD_MACHINES = [
  "CI", "CONTINUOUS_INTEGRATION", "BUILD_ID", "BUILD_NUMBER", "APPVEYOR", "BITBUCKET_BUILD_NUMBER",
  "BUILDKITE", "CIRCLECI", "CODEBUILD_BUILD_ID", "DRONE", "GITHUB_ACTIONS", "GITLAB_CI",
  "JENKINS_URL", "TEAMCITY_VERSION", "TF_BUILD", "TRAVIS",
];
const NOT_SET = ["", "0", "false", "no", "off"];
// npm's rule: no name may lead out of node_modules.
const PACKAGE_NAME = /^(@[a-z\d~-][a-z\d._~-]*\/)?[a-z\d~-][a-z\d._~-]*$/i;
// What the sender inherits of Node's own variables and options: certificates to trust, and the proxy.
// Others are meant for the command: --inspect-brk, or NODE_V8_COVERAGE, which writes a file at exit.
const KEPT_NODE_VARIABLES = ["NODE_EXTRA_CA_CERTS", "NODE_USE_SYSTEM_CA", "NODE_USE_ENV_PROXY"];
const KEPT_NODE_OPTIONS = ["--use-system-ca", "--use-openssl-ca", "--use-bundled-ca"];
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
 * Send one event for a command.  Returns at once and never throws.
 *
 * @param {import("./cli.d.mts").TelemetryOptions} options
 */
export function sendTelemetry(options) {
  try {
    if (isSet("DEBUG_TELEMETRY")) console.error(encode(describe(options)));
    else if (telemetryStatus(options).enabled) send(options.url, encode(describe(options)));
  } catch {
    // A command must not fail because its telemetry does.
  }
}

/**
 * Whether sendTelemetry() would send an event with these options here, and why not.
 *
 * @param {import("./cli.d.mts").TelemetryOptions} options
 * @returns {import("./cli.d.mts").TelemetryStatus}
 */
export function telemetryStatus({ url, optOut, ci }) {
  const reason = whyNot(url, [...OPT_OUTS, optOut], ci ? [] : BUILD_MACHINES);
  return { enabled: reason === null, reason };
}

function whyNot(url, optOuts, buildMachines) {
  const optOut = optOuts.find((name) => name && isSet(name));
  if (optOut) return `${optOut} is set`;
  const buildMachine = buildMachines.find(isSet);
  if (buildMachine) return `${buildMachine} is set, as on build machines`;
  if (isSet("DEBUG_TELEMETRY")) return "DEBUG_TELEMETRY is set";
  if (!runtime()) return `${process.execPath} is neither node, bun nor deno`;
  if (!URL.canParse(url)) return "the URL is invalid";
  return null;
}

function isSet(name) {
  return !NOT_SET.includes((process.env[name] ?? "").trim().toLowerCase());
}

/** "node", "bun" or "deno"; undefined in an executable with one of them inside. */
function runtime() {
  return /^(node|bun|deno)/.exec(basename(process.execPath))?.[0];
}

function describe({ command, packages, projectFramework, projectId }) {
  return {
    nodeEnv: process.env.NODE_ENV || "development",
    nodeVersion: process.version,
    os: OS_NAMES[process.platform] ?? process.platform,
    osVersion: release(),
    command,
    packages: packages ? findPackages(packages) : [],
    projectFramework: projectFramework || "unknown",
    projectId,
  };
}

function send(url, event) {
  const evaluate = runtime() === "deno" ? "eval" : "--eval";
  const child = spawn(process.execPath, [evaluate, SENDER], {
    detached: true,
    stdio: "ignore",
    windowsHide: true,
    cwd: dirname(process.execPath), // on Windows a directory in use cannot be deleted
    env: {
      ...withoutNodeVariables(process.env),
      EVENT_URL: url,
      EVENT: event,
      NODE_OPTIONS: keptNodeOptions(),
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

function keptNodeOptions() {
  const given = [...process.execArgv, ...(process.env.NODE_OPTIONS ?? "").split(/\s+/)];
  return KEPT_NODE_OPTIONS.filter((option) => given.includes(option)).join(" ");
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
  const project = workingDirectories().find((directory) => isProject(readPackage(directory)));
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

/** The working directory and all its parents; none if it has been deleted. */
function workingDirectories() {
  try {
    return upwards(process.cwd());
  } catch {
    return [];
  }
}

/** The directory and all its parents. */
function upwards(directory) {
  const parent = dirname(directory);
  return parent === directory ? [directory] : [directory, ...upwards(parent)];
}
