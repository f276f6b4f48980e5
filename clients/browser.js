// Tells a telemetry server that an app is in use: one small request for each page load, which the
// app never waits for and never hears of again.

const TIMEOUT_MS = 3000;
const LONGEST_WAIT_FOR_IDLE_MS = 2000;

const CALLED = Symbol.for("sendTelemetry was called"); // of the page: it may have two copies of this

/**
 * Send one event after the load event, when the browser is idle; or at once when the page is left
 * before that.  A page that is prerendered sends nothing until it is shown.  A second call does
 * nothing, also by another copy of this module.  Never throws.
 *
 * Nothing is sent where the user has opted out: by Global Privacy Control or Do Not Track in the
 * browser, or by `disableTelemetry`.
 *
 * @param {object} options
 * @param {string} options.url The whole address, as in "https://telemetry.example.com/telemetry".
 * @param {object} options.payload What to send; anything that JSON can hold.
 * @param {boolean} [options.disableTelemetry] The opt-out that the app offers.
 */
export function sendTelemetry(options) {
  try {
    if (typeof document === "undefined" || globalThis[CALLED]) return; // the former: on a server
    globalThis[CALLED] = true;
    const { url, payload, disableTelemetry } = options;
    if (disableTelemetry || navigator.globalPrivacyControl || navigator.doNotTrack === "1") return;
    whenShown(() => sendOnce(() => post(url, encode(payload))));
  } catch {
    // What has a document but no more is no browser.
  }
}

function whenShown(run) {
  if (document.prerendering) document.addEventListener("prerenderingchange", run, { once: true });
  else run();
}

function sendOnce(run) {
  const send = once(run);
  addEventListener("pagehide", send);
  if (document.readyState === "complete") whenIdle(send);
  else addEventListener("load", () => whenIdle(send));
}

function once(run) {
  let done = false;
  return () => {
    if (done) return;
    done = true;
    try {
      run();
    } catch {
      // An app must not fail because its telemetry does.
    }
  };
}

function whenIdle(run) {
  if (window.requestIdleCallback) requestIdleCallback(run, { timeout: LONGEST_WAIT_FOR_IDLE_MS });
  else setTimeout(run); // Safari
}

/** Base64 of UTF-8; btoa alone takes no character past U+00FF. */
function encode(payload) {
  return btoa(String.fromCharCode(...new TextEncoder().encode(JSON.stringify(payload))));
}

function post(url, body) {
  // A string as the body is text/plain: with no-cors that needs no preflight, and an error page
  // without CORS headers is no second error.  strict-origin: the host of the page, never its path.
  const request = {
    method: "POST",
    body,
    mode: "no-cors",
    credentials: "omit",
    referrerPolicy: "strict-origin",
  };
  try {
    // Chromium writes each fetch that fails to the console, caught or not; but not what it is
    // given for later, at once: that too outlives the page, and leaves nothing to wait for.
    fetchLater(url, { ...request, activateAfter: 0 });
  } catch {
    // Another browser, or a page or an address that is not secure.
    const abort = new AbortController();
    setTimeout(() => abort.abort(), TIMEOUT_MS);
    fetch(url, { ...request, keepalive: true, signal: abort.signal }).catch(() => {});
  }
}
