import { sendTelemetry } from "telemetry-senders/browser";

sendTelemetry({
  url: "https://telemetry.sprout.example/telemetry",
  payload: { version: "1.2.3" },
});
