import { fileURLToPath } from "node:url";

// The packages lie where tests/apps has installed them, above the copy of this app.
export default { output: "export", turbopack: { root: fileURLToPath(new URL("../..", import.meta.url)) } };
