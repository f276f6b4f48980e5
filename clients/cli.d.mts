export interface TelemetryOptions {
  /** The full URL, such as "https://telemetry.example.com/cli". */
  url: string;
  /** The command that ran, such as "dev". */
  command: string;
  /** The project's own identifier, if it has one. */
  projectId?: string | undefined;
  /** What the project is built with, such as "vite". */
  projectFramework?: string | undefined;
  /**
   * The prefix of the packages to report, such as "@sprout/": of the dependencies and
   * devDependencies of the nearest package.json, with their installed versions.  None by default.
   */
  packages?: string | undefined;
  /** Another environment variable to opt out. */
  optOut?: string | undefined;
  /** Send on build machines, too. */
  ci?: boolean | undefined;
}

export type TelemetryStatus =
  | { enabled: true; reason: null }
  /** The reason is for people, such as "DO_NOT_TRACK is set". */
  | { enabled: false; reason: string };

/**
 * Send one event for a command.  Returns at once and never throws.
 *
 * Nothing is sent if the user has opted out, or on a build machine; telemetryStatus() says why.
 * With DEBUG_TELEMETRY=1 the event is written to standard error instead.
 */
export function sendTelemetry(options: TelemetryOptions): void;

/** Whether sendTelemetry() would send an event with these options here, and why not. */
export function telemetryStatus(options: TelemetryOptions): TelemetryStatus;
