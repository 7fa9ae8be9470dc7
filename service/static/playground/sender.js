// Sends listings in batches that the service accepts, and waits when the service asks for it.

import { Problem, call, pause, unreadable } from "./api.js";

const MAX_LISTINGS = 32;
const MAX_BYTES = 8 * 2 ** 20; // of images, before base64 makes them a third larger
const MAX_ATTEMPTS = 5; // for a listing that fails with 503 or 504 inside a batch

const asBase64 = (file) =>
  new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(unreadable(file));
    reader.readAsDataURL(file);
  });

const bodyOf = async ({ id, title, image, url }) => ({
  id,
  ...(title && { title }),
  ...(image && { image: { base64: await asBase64(image) } }),
  ...(url && { image: { url } }),
});

/** Read the image files of `jobs`. Returns `{ batch, listings }` for those that could be read; the others have failed. */
const prepare = async (jobs, onDone) => {
  const bodies = await Promise.allSettled(jobs.map(({ listing }) => bodyOf(listing)));
  const batch = jobs.filter((job, at) => {
    if (bodies[at].status === "rejected") finish(job, { error: bodies[at].reason }, onDone);
    return !job.done;
  });
  return { batch, listings: bodies.filter(({ status }) => status === "fulfilled").map(({ value }) => value) };
};

/** Remove as many jobs from the front of `waiting` as fit into a request, at least one. */
const take = (waiting, limit) => {
  let bytes = 0;
  let count = 0;
  while (count < Math.min(limit, waiting.length)) {
    bytes += waiting[count].listing.image?.size ?? 0;
    if (count && bytes > MAX_BYTES) break;
    count += 1;
  }
  return waiting.splice(0, count);
};

/**
 * Send all `jobs` (`{ listing, attempts }`), and call `onDone(job, result)` for each with a reply or `{ error }`.
 *
 * A batch that is too large is halved. A batch that the service has no room for is sent again after `Retry-After`, without
 * a limit on retries (`onWait(problem, seconds)` is called each second). The service fails a whole batch if the model fails
 * on each of its listings. When this throws, `jobs` holds the jobs that are not done.
 *
 * Throws `Problem` if waiting would not help, or the signal's AbortError.
 */
export const sendAll = async (jobs, options, { signal, onDone, onWait }) => {
  let limit = MAX_LISTINGS;
  let attempt = 0;
  while (jobs.length) {
    const { batch, listings } = await prepare(take(jobs, limit), onDone);
    if (!batch.length) continue;
    try {
      const { reply } = await call("v1/classify/batch", { json: { listings, ...options }, signal });
      const { retries, problem } = record(batch, reply.results, onDone);
      jobs.unshift(...retries);
      attempt = retries.length ? attempt + 1 : 0;
      if (retries.length) await pause(problem.wait(attempt), signal, (seconds) => onWait(problem, seconds));
    } catch (error) {
      if (signal.aborted || !(error instanceof Problem)) {
        jobs.unshift(...batch.filter((job) => !job.done));
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

/** Record the results of a batch. Returns the jobs to send again, and the problem of the last of them. */
const record = (batch, results, onDone) => {
  let problem = null;
  const retries = batch.filter((job, at) => {
    const result = results[at];
    job.attempts += 1;
    if (result.error && [503, 504].includes(result.error.status) && job.attempts < MAX_ATTEMPTS) {
      problem = new Problem(result.error);
      return true;
    }
    finish(job, result, onDone);
    return false;
  });
  return { retries, problem };
};

const finish = (job, result, onDone) => {
  job.done = true;
  onDone(job, result);
};
