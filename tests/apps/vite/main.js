import { createElement } from "react";
import { createRoot } from "react-dom/client";
import { Telemetry } from "./telemetry.jsx";

createRoot(document.getElementById("root")).render(createElement(Telemetry));
