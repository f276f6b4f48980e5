// Tells a telemetry server that an app is in use: one small request for each page load.  The app
// neither waits for it nor sees its result.

const TIMEOUT_MS = 3000;
const LONGEST_WAIT_FOR_IDLE_MS = 2000;

const SIMULATED = /jsdom|HappyDOM/; // the user agents of unit tests
const URLS = Symbol.for("URLs that sendTelemetry was called with"); // shared by all copies of this module

/**
 * Send one event: after the load event, when the browser is idle, or when the page is left before
 * that.  A prerendered page sends nothing until it is shown.  Further calls with the same URL on
 * the same page do nothing, even by another copy of this module.  Never throws.
 *
 * @param {import("./browser.d.ts").TelemetryOptions} options
 */
export function sendTelemetry(options) {
  try {
    if (typeof document === "undefined") return; // server-side rendering
    const { url, payload, debug } = options;
    const log = debug ? (...words) => console.info("[telemetry]", ...words) : () => {};
    const reason = whyNot(options);
    if (reason) return log(`would not send: ${reason}`);
    const urls = (globalThis[URLS] ??= new Set());
    if (urls.has(url)) return;
    urls.add(url);
    const event = { ...payload };
    event.providers ??= {};
    event.resourceCount ??= 0;
    const send = debug ? () => log("would send", event, "to", url) : () => post(url, encode(event));
    whenShown(() => sendOnce(send));
  } catch {
    // A simulated document without the rest of a browser, or options that make no event.
  }
}

/** Why nothing is to be sent, or undefined. */
function whyNot({ disableTelemetry }) {
  if (disableTelemetry) return "the app sets disableTelemetry";
  if (navigator.globalPrivacyControl) return "Global Privacy Control is on";
  if (navigator.doNotTrack === "1") return "Do Not Track is on";
  if (navigator.webdriver) return "WebDriver controls the browser";
  if (SIMULATED.test(navigator.userAgent)) return "this is no browser, but a simulation";
}

function whenShown(run) {
  if (document.prerendering) document.addEventListener("prerenderingchange", run, { once: true });
  else run();
}

function sendOnce(run) {
  let done = false;
  const send = () => {
    if (done) return;
    done = true;
    try {
      run();
    } catch {
      // An app must not fail because its telemetry does.
    }
  };
  addEventListener("pagehide", send);
  if (document.readyState === "complete") whenIdle(send);
  else addEventListener("load", () => whenIdle(send));
}

function whenIdle(run) {
  if (window.requestIdleCallback) requestIdleCallback(run, { timeout: LONGEST_WAIT_FOR_IDLE_MS });
  else setTimeout(run); // Safari
}

/** Base64 of UTF-8; btoa alone rejects characters above U+00FF. */
function encode(event) {
  return btoa(String.fromCharCode(...new TextEncoder().encode(JSON.stringify(event))));
}

function post(url, body) {
  // A string body is text/plain, which with no-cors needs no preflight, and a response without
  // CORS headers is no error.  strict-origin sends the host of the page, never its path.
  const request = {
    method: "POST",
    body,
    mode: "no-cors",
    credentials: "omit",
    referrerPolicy: "strict-origin",
  };
  try {
    // Chromium logs each failed fetch to the console, even if it is caught, but not a failed
    // fetchLater.  That one outlives the page, too, and there is nothing to wait for.
    fetchLater(url, { ...request, activateAfter: 0 });
  } catch {
    // No fetchLater: another browser, or a page or URL without TLS.
    const abort = new AbortController();
    setTimeout(() => abort.abort(), TIMEOUT_MS);
    fetch(url, { ...request, keepalive: true, signal: abort.signal }).catch(() => {});
  }
}
