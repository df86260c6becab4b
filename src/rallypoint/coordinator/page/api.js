// Asks the coordinator. The token is in this tab's storage and in the Authorization header of each
// request; never in a URL, and never in a cookie. So another site has nothing to send along.

const KEY = "rallypoint-token";
const ANSWER_MS = 15000;
// As in the coordinator: a token may carry the identity of a host, which must not be sent.
const FORM = /^(rlp1\.[0-9a-f]{64}\.[A-Za-z0-9_-]{22,200})(?:\.[A-Za-z0-9_-]+)?$/;

/** An answer that is no success, or none. `status` 0: no answer came. */
export class ApiError extends Error {
  constructor(status, message, hint = "", body = {}, retryS = null) {
    super(message);
    this.status = status;
    this.hint = hint;
    this.body = body;
    this.retryS = retryS;
  }
}

/** What is sent of a token that a person has typed. Throws ApiError for a text that can be none. */
export function credential(text) {
  const token = text.trim();
  if (!/^[\x21-\x7e]+$/.test(token)) {
    throw new ApiError(401, "this is not a token", "a token has no spaces, and only ASCII characters");
  }
  const found = FORM.exec(token);
  return found ? found[1] : token;
}

export const session = {
  get token() {
    return sessionStorage.getItem(KEY) ?? "";
  },
  set token(text) {
    if (text) sessionStorage.setItem(KEY, text);
    else sessionStorage.removeItem(KEY);
  },
};

// Relative, so that a proxy may serve the page below a path of its own.
const url = (path) => new URL(path, document.baseURI.split("#")[0]);
export const runPath = (id, rest = "") => `api/v1/runs/${encodeURIComponent(id)}${rest}`;

function headers(more = {}) {
  return session.token ? { Authorization: `Bearer ${session.token}`, ...more } : more;
}

async function request(path, options, signal) {
  const within = AbortSignal.timeout(ANSWER_MS);
  const until = signal ? AbortSignal.any([signal, within]) : within;
  return checked(await sent(path, options, until, signal));
}

/** Send, and tell in words why nothing came back. */
async function sent(path, options, until, signal) {
  try {
    return await fetch(url(path), {
      ...options,
      headers: headers(options.headers),
      signal: until,
      cache: "no-store",
      credentials: "omit",
      redirect: "error",
      referrerPolicy: "no-referrer",
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    if (error.name === "TimeoutError") {
      throw new ApiError(0, "the coordinator has not answered in time", "it is busy, or the network is slow");
    }
    throw new ApiError(0, "the coordinator cannot be reached", unreachable());
  }
}

function unreachable() {
  const gone = "its process may have ended, or the network to it is gone";
  return location.protocol === "https:"
    ? `${gone}; or its certificate has changed, and this browser does not trust the new one: load the page again to see that`
    : `${gone}; or it uses TLS now: then open it at https://${location.host}`;
}

async function checked(response) {
  if (response.ok) return response;
  let body = {};
  try {
    body = await response.json();
  } catch {
    // A proxy has answered, in HTML.
  }
  const after = Number(response.headers.get("Retry-After"));
  const hint = body.hint ?? "";
  throw new ApiError(response.status, body.error ?? said(response.status), hint, body, after > 0 ? after : null);
}

function said(status) {
  if (status === 401) return "a token is needed";
  if (status === 403) return "this token may not do that";
  if (status === 429) return "too many requests from here";
  if (status >= 502) return `a proxy answers for the coordinator, with status ${status}`;
  return `the coordinator answers with status ${status}`;
}

/** The JSON at a path. Throws ApiError. */
export async function get(path, signal) {
  return (await request(path, {}, signal)).json();
}

/** Do something. Throws ApiError. */
export async function post(path, body) {
  const options = {
    method: "POST",
    body: JSON.stringify(body),
    headers: { "Content-Type": "application/json" },
  };
  return (await request(path, options)).json();
}

/**
 * Read a stream of events (SSE) until it ends: `take(kind, data)` for each message. EventSource can
 * send no Authorization header. `since`: the id of the last event that is known.
 */
export async function stream(path, since, take, signal) {
  const more = { Accept: "text/event-stream" };
  if (since) more["Last-Event-ID"] = since;
  const response = await checked(await sent(path, { headers: more }, signal, signal));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    const found = parts.map(message).filter((each) => each.data !== "");
    if (found.length) take(found.map(({ kind, data }) => ({ kind, data: JSON.parse(data) })));
  }
}

function message(text) {
  const found = { kind: "", data: "" };
  for (const line of text.split("\n")) {
    const colon = line.indexOf(": ");
    if (line.slice(0, colon) === "event") found.kind = line.slice(colon + 2);
    if (line.slice(0, colon) === "data") found.data += line.slice(colon + 2);
  }
  return found;
}

/** Wait, at most until `signal` is aborted or `wake` is called. */
export function pause(ms, signal) {
  let wake;
  const over = new Promise((resolve) => {
    wake = resolve;
    setTimeout(resolve, ms);
    signal?.addEventListener("abort", resolve, { once: true });
  });
  return { over, wake };
}

/** Wait while nobody looks at this tab. It then has no request open. */
export async function visible(signal) {
  while (document.hidden && !signal.aborted) {
    await new Promise((resolve) => {
      document.addEventListener("visibilitychange", resolve, { once: true });
      signal.addEventListener("abort", resolve, { once: true });
    });
  }
}

/** Pauses in milliseconds between tries: twice as long each time, with some chance in them. */
export class Backoff {
  constructor(firstMs = 500, mostMs = 30000) {
    this.firstMs = firstMs;
    this.mostMs = mostMs;
    this.reset();
  }

  reset() {
    this.nextMs = this.firstMs;
  }

  next(error) {
    const ms = Math.max(this.nextMs, (error?.retryS ?? 0) * 1000);
    this.nextMs = Math.min(2 * this.nextMs, this.mostMs);
    return ms * (0.8 + 0.4 * Math.random());
  }
}
