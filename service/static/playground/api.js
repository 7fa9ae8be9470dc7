// The way to the service: one function that calls it, one class for whatever goes wrong, and what it means to people.

const KEY = "cma-clip-api-key";
const PATIENCE_MS = 60_000;

/** Tells of `state` (ready, busy, away, locked, loading) and of `key` (a new API key). */
export const service = new EventTarget();

const tell = (state) => service.dispatchEvent(new CustomEvent("state", { detail: state }));

export const hasKey = () => Boolean(sessionStorage.getItem(KEY));

export const useKey = (key) => {
  sessionStorage.setItem(KEY, key);
  service.dispatchEvent(new Event("key"));
};

// What each code means for whoever looks at the page. The service's own `detail` is shown beside it.
const MEANING = {
  malformed_request: ["The request was not understood", "Something between this page and the service may be in the way."],
  unauthorized: ["An API key is needed", "Enter one at the top of the page."],
  payload_too_large: ["Too large for this service", "Use a smaller picture; one megapixel is plenty."],
  unsupported_media_type: ["Not a picture that can be read", "Save it in one of these formats, JPEG for instance, and try again."],
  invalid_request: ["The request is not in order", "What is said above names the part that is not."],
  undecodable_image: ["The picture is damaged", "Open it in a picture program and save it anew."],
  unknown_attribute: ["This model does not read that attribute", "The model may have changed: load the page again."],
  image_url_forbidden: ["That address may not be fetched", "Download the picture and drop it here instead."],
  image_fetch_failed: ["The picture could not be fetched", "Check the address, or download the picture and drop it here."],
  overloaded: ["The service is busy", "It has more to do than it can hold just now."],
  draining: ["This replica is stopping", "Another one, or its successor, answers in a moment."],
  not_ready: ["The service is not ready", "The model may still be loading."],
  deadline_exceeded: ["It took too long", "The service could not answer in time."],
  inference_failed: ["The model failed on this listing", "That is a bug: please report it with the request id."],
  internal_error: ["Something went wrong in the service", "That is a bug: please report it with the request id."],
  not_found: ["There is nothing at that path", "The page and the service may be of different versions: load the page again."],
  method_not_allowed: ["The service does not take this", "The page and the service may be of different versions."],
  away: ["The service cannot be reached", "Is it running, and is this machine online?"],
  silent: ["The service does not answer", "A minute has passed."],
  unreadable: ["The file could not be read", "Was it moved, changed or deleted since? Choose it again."],
  odd: ["That was not the service's own answer", "Something between this page and the service may be in the way."],
};

const TRANSIENT = new Set(["overloaded", "draining", "not_ready", "deadline_exceeded", "away", "silent"]);

/** Anything but an answer. `transient`: trying again later makes sense, after `retryAfter` seconds if it is known. */
export class Problem extends Error {
  constructor({ code, status = 0, detail = "", request_id: requestId = "" }, retryAfter = null) {
    super(detail);
    const [title, advice] = MEANING[code] ?? ["The service refused", ""];
    Object.assign(this, { code, status, title, advice, detail, requestId, retryAfter });
  }

  get transient() {
    return TRANSIENT.has(this.code) || (this.code === "odd" && this.status >= 502);
  }

  /** Seconds to wait before try number `attempt` (from 1): as told by the service, else ever longer. */
  wait(attempt) {
    return this.retryAfter ?? Math.min(15, 2 ** attempt);
  }
}

const STATE_OF = { unauthorized: "locked", away: "away", silent: "away", overloaded: "busy", draining: "away", not_ready: "loading" };

const problemOf = async (response) => {
  const after = Number(response.headers.get("Retry-After") ?? NaN);
  const retryAfter = Number.isFinite(after) ? Math.min(300, Math.max(1, after)) : null;
  if (response.headers.get("Content-Type")?.startsWith("application/problem+json")) {
    try {
      return new Problem(await response.json(), retryAfter);
    } catch (error) {
      if (!(error instanceof SyntaxError)) throw error; // cut off
    }
  }
  return new Problem({ code: "odd", status: response.status, detail: `It has status ${response.status}.` }, retryAfter);
};

/** What to say of a file that the browser could not read. */
export const unreadable = (file) => new Problem({ code: "unreadable", detail: `The browser could not read ${file.name}.` });

/** Text as a header carries it: a character for each of its bytes in UTF-8. */
const asBytes = (text) => String.fromCharCode(...new TextEncoder().encode(text));

/**
 * Call the service: GET, or POST of `json` or `form`. Returns `{ reply, milliseconds }`.
 *
 * Throws `Problem`, or the signal's own AbortError where the call was given up.
 */
export const call = async (path, { json, form, signal } = {}) => {
  const key = sessionStorage.getItem(KEY);
  const headers = { Accept: "application/json", ...(key && { Authorization: `Bearer ${asBytes(key)}` }) };
  if (json) headers["Content-Type"] = "application/json";
  const body = json ? JSON.stringify(json) : form;
  const patience = AbortSignal.timeout(PATIENCE_MS);
  const started = performance.now();
  try {
    const response = await fetch(path, {
      method: body ? "POST" : "GET",
      headers,
      body,
      signal: signal ? AbortSignal.any([signal, patience]) : patience,
    });
    if (!response.ok) throw await problemOf(response);
    const reply = await response.json();
    tell("ready");
    return { reply, milliseconds: performance.now() - started };
  } catch (error) {
    if (signal?.aborted) throw error;
    const problem = asProblem(error, patience);
    if (STATE_OF[problem.code]) tell(STATE_OF[problem.code]);
    throw problem;
  }
};

const asProblem = (error, patience) => {
  if (error instanceof Problem) return error;
  if (patience.aborted) return new Problem({ code: "silent" });
  if (error instanceof SyntaxError) return new Problem({ code: "odd", detail: "It is not JSON." });
  return new Problem({ code: "away" });
};

/** Wait, telling `onTick` the seconds that are left; throws once the signal is aborted. */
export const pause = async (seconds, signal, onTick = () => {}) => {
  for (let left = Math.ceil(seconds); left > 0; left -= 1) {
    onTick(left);
    await new Promise((resolve) => setTimeout(resolve, 1000));
    signal.throwIfAborted();
  }
};
