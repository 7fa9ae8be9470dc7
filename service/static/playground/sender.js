// Sends listings in batches that the service can take, and waits when it says so.

import { Problem, call, pause, unreadable } from "./api.js";

const MOST_LISTINGS = 32;
const MOST_BYTES = 8 * 2 ** 20; // of pictures, before base64 makes them a third larger
const TRIES = 5; // of one listing that fails inside a batch for reasons of the service's own

const asBase64 = (file) =>
  new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(unreadable(file));
    reader.readAsDataURL(file);
  });

const bodyOf = async ({ id, title, picture, address }) => ({
  id,
  ...(title && { title }),
  ...(picture && { image: { base64: await asBase64(picture) } }),
  ...(address && { image: { url: address } }),
});

/** Read the pictures of `jobs`: `{ batch, listings }` of those that could be read; the others are settled. */
const prepare = async (jobs, onDone) => {
  const bodies = await Promise.allSettled(jobs.map(({ listing }) => bodyOf(listing)));
  const batch = jobs.filter((job, at) => {
    if (bodies[at].status === "rejected") finish(job, { error: bodies[at].reason }, onDone);
    return !job.settled;
  });
  return { batch, listings: bodies.filter(({ status }) => status === "fulfilled").map(({ value }) => value) };
};

/** Take from the front of `waiting` as many as fit, one at least. */
const take = (waiting, limit) => {
  let bytes = 0;
  let count = 0;
  while (count < Math.min(limit, waiting.length)) {
    bytes += waiting[count].listing.picture?.size ?? 0;
    if (count && bytes > MOST_BYTES) break;
    count += 1;
  }
  return waiting.splice(0, count);
};

/**
 * Send all `jobs` (`{ listing, tries }`), and settle each with `onDone(job, result)`: a reply, or `{ error }`.
 *
 * A batch that is too large is halved; one that the service has no room for waits as long as `Retry-After` says, for as
 * often as it takes (`onWait(problem, seconds)` each second). The service fails a batch as a whole where the model fails on
 * each of its listings. What was not settled when this throws is in `jobs` again.
 *
 * Throws `Problem` for what no waiting mends, and the signal's AbortError.
 */
export const sendAll = async (jobs, options, { signal, onDone, onWait }) => {
  let limit = MOST_LISTINGS;
  let attempt = 0;
  while (jobs.length) {
    const { batch, listings } = await prepare(take(jobs, limit), onDone);
    if (!batch.length) continue;
    try {
      const { reply } = await call("v1/classify/batch", { json: { listings, ...options }, signal });
      const { late, problem } = settle(batch, reply.results, onDone);
      jobs.unshift(...late);
      attempt = late.length ? attempt + 1 : 0;
      if (late.length) await pause(problem.wait(attempt), signal, (seconds) => onWait(problem, seconds));
    } catch (error) {
      if (signal.aborted || !(error instanceof Problem)) {
        jobs.unshift(...batch.filter((job) => !job.settled));
        throw error;
      }
      const smaller = ["payload_too_large", "deadline_exceeded"].includes(error.code) && batch.length > 1;
      if (error.code === "inference_failed" || (error.code === "payload_too_large" && batch.length === 1)) {
        for (const job of batch) finish(job, { error }, onDone);
        continue;
      }
      jobs.unshift(...batch);
      if (smaller) limit = Math.ceil(batch.length / 2);
      if (error.code === "payload_too_large") continue;
      if (!error.transient) throw error;
      attempt += 1;
      await pause(error.wait(attempt), signal, (seconds) => onWait(error, seconds));
    }
  }
};

/** Settle what was answered; returns the jobs that deserve another try, and what befell the last of them. */
const settle = (batch, results, onDone) => {
  let problem = null;
  const late = batch.filter((job, at) => {
    const result = results[at];
    job.tries += 1;
    if (result.error && [503, 504].includes(result.error.status) && job.tries < TRIES) {
      problem = new Problem(result.error);
      return true;
    }
    finish(job, result, onDone);
    return false;
  });
  return { late, problem };
};

const finish = (job, result, onDone) => {
  job.settled = true;
  onDone(job, result);
};
