// The HTTP client: the server's public API, and the API key of this tab. Must not know elements or views.

const KEY = "lory.key";

/** An error response of the server. */
export class ApiError extends Error {
  constructor(status, body) {
    super(body?.message ?? `The server responded with status ${status}`);
    this.status = status;
    this.code = body?.code ?? null;
    this.param = body?.param ?? null;
    this.title = {
      401: "An API key is required",
      403: "This key does not have permission",
      404: "Not found",
      413: "Too large",
      429: "The server is busy",
      503: "The server is not ready",
    }[status];
  }
}

/** The server did not respond. */
export class Unreachable extends Error {
  constructor() {
    super("The server does not respond. This page retries automatically.");
    this.title = "Cannot reach the server";
    this.status = 0;
  }
}

/** The API key, stored for this tab only. */
export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (secret) => (secret ? sessionStorage.setItem(KEY, secret) : sessionStorage.removeItem(KEY)),
};

/** Called when the server requires a key; resolves to whether the user entered one. */
let requestKey = async () => false;
export const onKeyRequired = (handler) => {
  requestKey = handler;
};

async function send(method, path, body, options = {}) {
  const headers = { ...options.headers };
  if (key.get()) headers.authorization = `Bearer ${key.get()}`;
  let payload = body;
  if (body !== undefined && !(body instanceof Blob) && !(body instanceof FormData)) {
    headers["content-type"] = "application/json";
    payload = JSON.stringify(body);
  }
  let response;
  try {
    response = await fetch(path, { method, headers, body: payload, signal: options.signal, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Unreachable();
  }
  if (response.status === 401 && (await requestKey())) return send(method, path, body, options);
  if (!response.ok) {
    let errorBody = null;
    try {
      errorBody = (await response.json()).error;
    } catch {
      // A proxy may respond with something other than JSON.
    }
    throw new ApiError(response.status, errorBody);
  }
  return response;
}

/** The JSON response of a route. */
export async function json(method, path, body, options) {
  return (await send(method, path, body, options)).json();
}

/** The text response of a route. */
export async function text(path, options) {
  return (await send("GET", path, undefined, options)).text();
}

export const get = (path, options) => json("GET", path, undefined, options);
export const post = (path, body, options) => json("POST", path, body ?? {}, options);

/** The route of a persona, or of something below it: `personaPath("customer", "versions")`. */
export const personaPath = (name, ...rest) => ["/v1/personas", encodeURIComponent(name), ...rest].join("/");

/** The names of dataset files that a file picker offers. */
export const DATASET_FILES = ".jsonl,.ndjson,.json,.csv,.tsv,.gz,.zst,application/jsonl,text/csv";

/** Uploads a dataset file and returns its record. The server checks every row. */
export function uploadDataset(file) {
  const form = new FormData();
  form.append("purpose", "fine-tune");
  form.append("file", file, file.name);
  return json("POST", "/v1/files", form);
}

/** The parsed data of each server-sent event of a POST. */
export async function* streamEvents(path, body, signal) {
  const response = await send("POST", path, body, { signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    let chunk;
    try {
      chunk = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Unreachable();
    }
    if (chunk.done) return;
    buffer += chunk.value;
    let end;
    while ((end = buffer.indexOf("\n\n")) >= 0) {
      const event = buffer.slice(0, end);
      buffer = buffer.slice(end + 2);
      if (!event.startsWith("data: ")) continue;
      const data = event.slice(6);
      if (data === "[DONE]") return;
      const parsed = JSON.parse(data);
      if (parsed.error) throw new ApiError(parsed.error.type === "server_error" ? 500 : 400, parsed.error);
      yield parsed;
    }
  }
}

/** The server's `status`: `ready` (with the base's name as `base`), `loading`, `stopping` or `unreachable`. */
export async function serverStatus() {
  let response;
  try {
    response = await fetch("/ready", { cache: "no-store" });
  } catch {
    return { status: "unreachable" };
  }
  if (response.ok) return { ...(await response.json()), status: "ready" };
  const code = (await response.json().catch(() => null))?.error?.code;
  return { status: code === "shutting_down" ? "stopping" : "loading" };
}
