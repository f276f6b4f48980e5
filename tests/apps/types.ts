import { sendTelemetry as sendFromBrowser } from "telemetry-senders/browser";
import { sendTelemetry, telemetryStatus, type TelemetryOptions } from "telemetry-senders/cli";

sendFromBrowser({ url: "https://telemetry.example.com/telemetry", payload: { version: "1.2.3" } });
sendFromBrowser({
  url: "https://telemetry.example.com/telemetry",
  payload: { version: "1.2.3", providers: { auth: true }, resourceCount: 3, projectId: undefined },
  disableTelemetry: undefined,
  debug: true,
});
// @ts-expect-error: a payload has a version
sendFromBrowser({ url: "https://telemetry.example.com/telemetry", payload: {} });
// @ts-expect-error: no such provider
sendFromBrowser({ url: "", payload: { version: "1.2.3", providers: { authentication: true } } });

const options: TelemetryOptions = { url: "https://telemetry.example.com/cli", command: "dev" };
sendTelemetry({ ...options, packages: "@sprout/", optOut: "SPROUT_NO_TELEMETRY", ci: true });
// @ts-expect-error: no command
sendTelemetry({ url: "https://telemetry.example.com/cli" });

const status = telemetryStatus(options);
export const told: string = status.enabled ? "Telemetry is on." : status.reason;
// @ts-expect-error: where telemetry is on, there is no reason
export const reason: string = status.enabled ? status.reason : "";
