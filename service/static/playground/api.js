// Calls the service: one function for requests, one class for everything that can go wrong, and the messages to show.

const KEY = "cma-clip-api-key";
const TIMEOUT_MS = 60_000;
const WATCH_MS = 1500; // how often the service is asked whether it is there, and how long for an answer

/** Dispatches `state` events (ready, busy, unavailable, locked, loading), `key` events (a new API key was entered) and `back` events. */
export const service = new EventTarget();

let current = "";

const setState = (state) => {
  current = state;
  service.dispatchEvent(new CustomEvent("state", { detail: state }));
};

export const hasKey = () => Boolean(sessionStorage.getItem(KEY));

export const useKey = (key) => {
  sessionStorage.setItem(KEY, key);
  service.dispatchEvent(new Event("key"));
};

// The title and the advice that the page shows for each code. The service's own `detail` is shown between them.
const MESSAGES = {
  malformed_request: ["The service could not read the request", "A proxy between this page and the service may have changed it."],
  unauthorized: ["An API key is required", "Enter one at the top of the page."],
  forbidden: ["This API key may not do that", "Enter another one at the top of the page."],
  payload_too_large: ["Too large for this service", "Use a smaller image; one megapixel is enough."],
  unsupported_media_type: ["Unsupported file format", "Save the image in a supported format, for example JPEG, and try again."],
  invalid_request: ["The request is not valid", "The message above names the part that is not valid."],
  undecodable_image: ["The image is damaged", "Open it in an image editor and save it again."],
  unknown_attribute: ["This model does not predict that attribute", "The model may have changed: reload the page."],
  image_url_forbidden: ["This URL is not allowed", "Download the image and drop it here instead."],
  image_fetch_failed: ["The image could not be fetched", "Check the URL, or download the image and drop it here."],
  body_too_slow: ["The request arrived too slowly", "Check the connection, or send a smaller image."],
  already_reviewed: ["Somebody else has this one", "Another reviewer has it, or has decided it: go on with the next."],
  job_not_done: ["The job is not done", "Its results can be had once all rows are computed."],
  rate_limited: ["Too many requests", "This API key, or this address, has sent as many as it may for now."],
  replica_failed: ["The replica that had this request has failed", "Send it again, unless this image makes it fail each time."],
  overloaded: ["The service is busy", "It cannot accept more requests at the moment."],
  draining: ["This replica is shutting down", "Another replica should answer shortly."],
  not_ready: ["The service is not ready", "The model may still be loading."],
  deadline_exceeded: ["The request took too long", "The service could not answer in time."],
  inference_failed: ["The model failed on this listing", "This is a bug: please report it with the request ID."],
  internal_error: ["An error occurred in the service", "This is a bug: please report it with the request ID."],
  not_found: ["This path does not exist", "The page and the service may be different versions: reload the page."],
  method_not_allowed: ["The service does not support this request", "The page and the service may be different versions: reload the page."],
  unreachable: ["The service cannot be reached", "Check that it is running and that this computer is online."],
  no_response: ["The service does not respond", "There was no answer within a minute."],
  unreadable: ["The file could not be read", "It may have been moved, changed or deleted. Choose it again."],
  unexpected_response: ["Unexpected response", "It may come from a proxy between this page and the service."],
};

const TRANSIENT = new Set(["overloaded", "draining", "not_ready", "deadline_exceeded", "unreachable", "no_response"]);

/** A failed request. `transient`: a retry may succeed, after `retryAfter` seconds if the service named a delay. */
export class Problem extends Error {
  constructor({ code, status = 0, detail = "", request_id: requestId = "" }, retryAfter = null) {
    super(detail);
    const [title, advice] = MESSAGES[code] ?? ["The service refused the request", ""];
    Object.assign(this, { code, status, title, advice, detail, requestId, retryAfter });
  }

  get transient() {
    return TRANSIENT.has(this.code) || (this.code === "unexpected_response" && this.status >= 502);
  }

  /** Seconds to wait after failed attempt number `attempt` (from 1): what the service asked for, or else doubling each time. */
  wait(attempt) {
    return this.retryAfter ?? Math.min(15, 2 ** attempt);
  }
}

const STATE_OF = {
  unauthorized: "locked",
  unreachable: "unavailable",
  no_response: "unavailable",
  overloaded: "busy",
  draining: "unavailable",
  not_ready: "loading",
};

const problemOf = async (response) => {
  const after = Number(response.headers.get("Retry-After") ?? NaN);
  const retryAfter = Number.isFinite(after) ? Math.min(300, Math.max(1, after)) : null;
  if (response.headers.get("Content-Type")?.startsWith("application/problem+json")) {
    try {
      return new Problem(await response.json(), retryAfter);
    } catch (error) {
      if (!(error instanceof SyntaxError)) throw error; // truncated JSON
    }
  }
  const { status } = response;
  return new Problem({ code: "unexpected_response", status, detail: `The response has status ${status}.` }, retryAfter);
};

/** The problem to report for a file that the browser could not read. */
export const unreadable = (file) => new Problem({ code: "unreadable", detail: `The browser could not read ${file.name}.` });

/** Text as a header value: one character for each byte of its UTF-8 encoding. */
const asBytes = (text) => String.fromCharCode(...new TextEncoder().encode(text));

/**
 * Call the service: POST `json` or `form`, or else GET. Returns `{ reply, milliseconds }`.
 *
 * Throws `Problem`, or the signal's own AbortError if the caller aborted.
 */
export const call = async (path, { json, form, signal } = {}) => {
  const key = sessionStorage.getItem(KEY);
  const headers = { Accept: "application/json", ...(key && { Authorization: `Bearer ${asBytes(key)}` }) };
  if (json) headers["Content-Type"] = "application/json";
  const body = json ? JSON.stringify(json) : form;
  const timeout = AbortSignal.timeout(TIMEOUT_MS);
  const started = performance.now();
  try {
    const response = await fetch(path, {
      method: body ? "POST" : "GET",
      headers,
      body,
      signal: signal ? AbortSignal.any([signal, timeout]) : timeout,
    });
    if (!response.ok) throw await problemOf(response);
    const reply = await response.json();
    setState("ready");
    return { reply, milliseconds: performance.now() - started };
  } catch (error) {
    if (signal?.aborted) throw error;
    const problem = asProblem(error, timeout);
    if (STATE_OF[problem.code]) setState(STATE_OF[problem.code]);
    throw problem;
  }
};

const asProblem = (error, timeout) => {
  if (error instanceof Problem) return error;
  if (timeout.aborted) return new Problem({ code: "no_response" });
  if (error instanceof SyntaxError) return new Problem({ code: "unexpected_response", detail: "The response is not JSON." });
  return new Problem({ code: "unreachable" });
};

/** Wait, and call `onTick` each second with the seconds left. Throws if the signal is aborted. */
export const pause = async (seconds, signal, onTick = () => {}) => {
  for (let left = Math.ceil(seconds); left > 0; left -= 1) {
    onTick(left);
    await new Promise((resolve) => setTimeout(resolve, 1000));
    signal.throwIfAborted();
  }
};

/** Notice within three seconds that the service is gone, though nobody sends a request, and that it is back. */
export const watch = () => {
  const look = async () => {
    if (!document.hidden) {
      const there = await fetch("readyz", { signal: AbortSignal.timeout(WATCH_MS) }).then(({ ok }) => ok, () => false);
      if (!there && ["ready", "busy"].includes(current)) setState("unavailable");
      if (there && current === "unavailable") {
        setState("ready");
        service.dispatchEvent(new Event("back"));
      }
    }
    setTimeout(look, WATCH_MS);
  };
  setTimeout(look, WATCH_MS);
};
