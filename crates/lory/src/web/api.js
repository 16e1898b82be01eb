// The server as this page sees it: the public API and nothing else. Knows no elements.

const KEY = "lory.key";

/** What the server said went wrong. */
export class ApiError extends Error {
  constructor(status, body) {
    super(body?.message ?? `The server answered with status ${status}`);
    this.status = status;
    this.code = body?.code ?? null;
    this.param = body?.param ?? null;
    this.title = {
      401: "This server wants a key",
      403: "This key may not do that",
      404: "That is not there",
      413: "That is too large",
      429: "The server is busy",
      503: "The server is not ready",
    }[status];
  }
}

/** The server did not answer at all. */
export class Unreachable extends Error {
  constructor() {
    super("Nothing answers at this address. The page tries again by itself.");
    this.title = "The server cannot be reached";
    this.status = 0;
  }
}

/** The key of this tab; it is kept for the tab only. */
export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (secret) => (secret ? sessionStorage.setItem(KEY, secret) : sessionStorage.removeItem(KEY)),
};

/** Called when the server wants a key; resolves to whether one was given. */
let askForKey = async () => false;
export const onKeyWanted = (ask) => {
  askForKey = ask;
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
  if (response.status === 401 && (await askForKey())) return send(method, path, body, options);
  if (!response.ok) {
    let said = null;
    try {
      said = (await response.json()).error;
    } catch {
      // A proxy may have answered with something else.
    }
    throw new ApiError(response.status, said);
  }
  return response;
}

/** JSON from a route. */
export async function json(method, path, body, options) {
  return (await send(method, path, body, options)).json();
}

/** Text from a route. */
export async function text(path, options) {
  return (await send("GET", path, undefined, options)).text();
}

export const get = (path, options) => json("GET", path, undefined, options);
export const post = (path, body, options) => json("POST", path, body ?? {}, options);

/** The data of each server-sent event of a POST, parsed. */
export async function* events(path, body, signal) {
  const response = await send("POST", path, body, { signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    let chunk;
    try {
      chunk = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Unreachable();
    }
    if (chunk.done) return;
    held += chunk.value;
    let end;
    while ((end = held.indexOf("\n\n")) >= 0) {
      const event = held.slice(0, end);
      held = held.slice(end + 2);
      if (!event.startsWith("data: ")) continue;
      const data = event.slice(6);
      if (data === "[DONE]") return;
      const parsed = JSON.parse(data);
      if (parsed.error) throw new ApiError(parsed.error.type === "server_error" ? 500 : 400, parsed.error);
      yield parsed;
    }
  }
}

/** Whether the server is there: `ready` (with the base's name), `loading`, `stopping`, or `away`. */
export async function state() {
  let response;
  try {
    response = await fetch("/ready", { cache: "no-store" });
  } catch {
    return { is: "away" };
  }
  if (response.ok) return { is: "ready", ...(await response.json()) };
  const code = (await response.json().catch(() => null))?.error?.code;
  return { is: code === "shutting_down" ? "stopping" : "loading" };
}
