/** The names that the report knows. */
export type Provider =
  | "auth"
  | "data"
  | "router"
  | "live"
  | "notification"
  | "auditLog"
  | "i18n"
  | "accessControl";

export interface TelemetryPayload {
  /** The version of the framework. */
  version: string;
  /** What the app has set up; none of it by default. */
  providers?: Partial<Record<Provider, boolean>> | undefined;
  /** How many resources the app has; 0 by default. */
  resourceCount?: number | undefined;
  /** The project's own identifier, if it has one. */
  projectId?: string | undefined;
}

export interface TelemetryOptions {
  /** The full URL, such as "https://telemetry.example.com/telemetry". */
  url: string;
  payload: TelemetryPayload;
  /** The opt-out that the app offers. */
  disableTelemetry?: boolean | undefined;
  /** Write to the console what would be sent, or why nothing would be, and send nothing. */
  debug?: boolean | undefined;
}

/**
 * Send one event for this page load, once for each URL.  Returns at once and never throws.
 *
 * Nothing is sent if the user has opted out by Global Privacy Control or Do Not Track, if the app
 * sets `disableTelemetry`, on a server, under WebDriver, or in jsdom or happy-dom.
 */
export function sendTelemetry(options: TelemetryOptions): void;
