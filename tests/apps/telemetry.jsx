"use client";

import { useEffect } from "react";
import { sendTelemetry } from "telemetry-senders/browser";

export function Telemetry() {
  useEffect(() => {
    sendTelemetry({
      url: "https://telemetry.sprout.example/telemetry",
      payload: { version: "1.2.3" },
    });
  }, []);
  return null;
}
