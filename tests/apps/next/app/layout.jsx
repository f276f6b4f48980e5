import { Telemetry } from "../telemetry";

export default function Layout({ children }) {
  return (
    <html lang="en">
      <body>
        <Telemetry />
        {children}
      </body>
    </html>
  );
}
