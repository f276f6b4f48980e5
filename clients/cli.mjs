// Tells a telemetry server that a command ran.  A process of its own does the sending, so that
// the command neither waits for it nor fails with it.

import { spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { release } from "node:os";
import { basename, dirname, join } from "node:path";

const MAX_TEXT_CHARS = 256; // the server refuses more, of both
const MAX_PACKAGES = 256;
const OS_NAMES = { darwin: "macOS", linux: "Linux", win32: "Windows" };

// Runs in the process that sends.
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
 * Nothing is sent where the user has opted out: when REFINE_NO_TELEMETRY, DO_NOT_TRACK or the
 * variable that `optOut` names is "true" or "1".
 *
 * @param {object} options
 * @param {string} options.url The whole address, as in "https://telemetry.example.com/cli".
 * @param {string} options.command What ran, as in "dev".
 * @param {string} [options.projectId] The project's own identifier, where it has one.
 * @param {string} [options.projectFramework] What the project is built with, as in "vite".
 * @param {string} [options.packages] The start of the names of the packages to report, as in
 *   "@refinedev/": those among the dependencies and devDependencies of the nearest package.json,
 *   with the versions that are installed.  None by default.
 * @param {string} [options.optOut] One more environment variable that opts out.
 */
export function sendTelemetry(options) {
  try {
    const { url, command, projectId, projectFramework, packages, optOut } = options;
    // A tool that is bundled with Node would be started once more, not Node.
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
  return ["true", "1"].includes(process.env[name]);
}

function send(url, event) {
  const { NODE_OPTIONS, ...env } = process.env; // those are for the command: --inspect-brk, say
  const child = spawn(process.execPath, ["--eval", SENDER], {
    detached: true,
    stdio: "ignore",
    windowsHide: true,
    cwd: dirname(process.execPath), // Windows lets nobody delete a directory that is in use
    env: {
      ...env,
      EVENT_URL: url,
      EVENT: JSON.stringify(event, clean),
      DO_NOT_TRACK: "1", // were it a bundled tool all the same, it must not go on forever
    },
  });
  child.on("error", () => {});
  child.unref();
}

/** Texts as the server takes them. */
function clean(_, value) {
  if (typeof value !== "string") return value;
  return [...value.replace(/\p{Cc}|\p{Cs}/gu, "")].slice(0, MAX_TEXT_CHARS).join("");
}

/** Name and version of the packages that the nearest package.json depends on. */
function findPackages(prefix) {
  const project = upwards(process.cwd()).find((directory) => readPackage(directory));
  if (!project) return [];
  const { dependencies, devDependencies } = readPackage(project);
  return Object.keys({ ...dependencies, ...devDependencies })
    .filter((name) => name.startsWith(prefix))
    .slice(0, MAX_PACKAGES)
    .map((name) => ({ name, version: installedVersion(name, project) }));
}

/** The version in the first node_modules that has the package, as Node looks for it; or null. */
function installedVersion(name, project) {
  for (const directory of upwards(project)) {
    const found = readPackage(join(directory, "node_modules", name));
    if (found) return typeof found.version === "string" ? found.version : null;
  }
  return null;
}

/** What the directory's package.json holds; undefined where it has none that can be read. */
function readPackage(directory) {
  try {
    return JSON.parse(readFileSync(join(directory, "package.json"), "utf8"));
  } catch {
    return undefined;
  }
}

/** The directory and all above it. */
function upwards(directory) {
  const parent = dirname(directory);
  return parent === directory ? [directory] : [directory, ...upwards(parent)];
}
