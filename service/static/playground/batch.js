// The view of many listings: files in, a table out.

import { Problem, service } from "./api.js";
import { writeCsv } from "./csv.js";
import { $, element, percent, plural, readable, save, segments } from "./dom.js";
import { chosenFiles, listingsOf } from "./files.js";
import { reason } from "./readings.js";
import { sendAll } from "./sender.js";
import * as trouble from "./trouble.js";

const PAGE = 25;
const FILTERS = {
  all: ["All", () => true],
  abstained: ["Abstained", (judged) => judged.some(({ accepted }) => !accepted)],
  accepted: ["Accepted", (judged) => judged.length > 0 && judged.every(({ accepted }) => accepted)],
  failed: ["Failed", null],
};

let jobs = []; // in the order of the table: { listing, tries, settled, result }
let waiting = []; // those that have no answer yet
let names = []; // attributes, once the first answer names them
let filter = "all";
let judge = ""; // the attribute that decides what "abstained" means; empty: any
let page = 0;
let running = null;
let precision = null;
let sent = null; // the target precision of the answers in the table
let thumbnails = [];
let open = () => {};

// ── the work ───────────────────────────────────────────────────────────────────────────────────────────────

/** Read these files (`{ file, path }`) as listings, and all of them by the service. */
export const readFiles = async (files) => {
  running?.abort();
  trouble.clear($("many-trouble"));
  let found;
  try {
    found = await listingsOf(files);
  } catch (error) {
    trouble.show($("many-trouble"), new Problem({ code: "invalid_request", detail: error.message }));
    return;
  }
  if (!found.listings.length) {
    trouble.show($("many-trouble"), new Problem({ code: "unsupported_media_type", detail: "There is no listing among these files." }));
    return;
  }
  begin(found);
};

const begin = ({ listings, notes }) => {
  jobs = listings.map((listing) => ({ listing, tries: 0, settled: false, result: null }));
  for (const job of jobs.filter(({ listing }) => listing.error)) {
    Object.assign(job, { settled: true, result: { error: { code: "invalid_request", detail: job.listing.error } } });
  }
  waiting = jobs.filter(({ settled }) => !settled);
  [names, filter, judge, page, sent] = [[], "all", "", 0, precision];
  $("notes").replaceChildren(...notes.map((note) => element("li", { textContent: note })));
  $("work").hidden = false;
  drawFilters();
  draw();
  run();
};

const run = async () => {
  running?.abort();
  const work = new AbortController();
  running = work;
  trouble.clear($("many-trouble"));
  $("stop").hidden = false;
  $("go-on").hidden = true;
  try {
    const options = sent ? { target_precision: sent } : {};
    await sendAll(waiting, options, { signal: work.signal, onDone, onWait });
    $("many-announce").textContent = `Done. ${progress()}`;
  } catch (error) {
    if (running !== work) return; // other files are being read
    if (error instanceof Problem) trouble.show($("many-trouble"), error);
    else if (!work.signal.aborted) throw error;
    $("many-announce").textContent = `Stopped. ${progress()}`;
  }
  if (running !== work) return;
  $("stop").hidden = true;
  $("go-on").hidden = !waiting.length;
  draw();
};

const onDone = (job, result) => {
  job.result = result;
  if (!names.length && result.attributes) {
    names = Object.keys(result.attributes);
    const options = names.map((name) => element("option", { value: name, textContent: readable(name) }));
    $("filter-attribute").replaceChildren(element("option", { value: "", textContent: "every attribute" }), ...options);
  }
  scheduleDraw();
};

const onWait = (problem, seconds) => {
  $("progress-text").textContent = `${progress()} ${problem.title}: going on in ${seconds} s.`;
};

const progress = () => {
  const done = jobs.filter(({ result }) => result).length;
  return `${done.toLocaleString("en")} of ${plural(jobs.length, "listing")} read.`;
};

// ── the table ──────────────────────────────────────────────────────────────────────────────────────────────

let scheduled = false;

/** Draw once for all the answers of a batch. */
const scheduleDraw = () => {
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(() => {
    scheduled = false;
    draw();
  });
};

const judged = ({ result }) => {
  if (!result?.attributes) return [];
  return judge ? [result.attributes[judge]] : Object.values(result.attributes);
};

const passes = (which) => (job) => {
  if (which === "all") return true;
  if (which === "failed") return Boolean(job.result?.error);
  return FILTERS[which][1](judged(job));
};

const drawFilters = () => {
  const options = Object.entries(FILTERS).map(([value, [text]]) => [value, text]);
  segments($("filters"), "filter", options, filter, (chosen) => {
    filter = chosen;
    page = 0;
    draw();
  });
};

const draw = () => {
  const focused = document.activeElement.dataset?.job;
  $("progress").max = jobs.length;
  $("progress").value = jobs.filter(({ result }) => result).length;
  $("progress-text").textContent = progress();
  $("download").disabled = !jobs.some(({ result }) => result);
  for (const radio of $("filters").querySelectorAll("input")) {
    radio.nextSibling.textContent = `${FILTERS[radio.value][0]} ${jobs.filter(passes(radio.value)).length.toLocaleString("en")}`;
  }
  const shown = jobs.filter(passes(filter));
  page = Math.min(page, Math.max(0, Math.ceil(shown.length / PAGE) - 1));
  drawTable(shown.slice(page * PAGE, (page + 1) * PAGE));
  $("pager").hidden = shown.length <= PAGE;
  $("previous").disabled = page === 0;
  $("next").disabled = (page + 1) * PAGE >= shown.length;
  $("page-text").textContent = `${page * PAGE + 1} to ${Math.min(shown.length, (page + 1) * PAGE)} of ${shown.length.toLocaleString("en")}`;
  if (focused) $("table").querySelector(`[data-job="${focused}"]`)?.focus();
};

const drawTable = (shown) => {
  thumbnails.forEach((address) => URL.revokeObjectURL(address));
  thumbnails = [];
  const head = ["Picture", "Listing", ...names.map(readable)];
  const cells = head.map((text) => element("th", { scope: "col", textContent: text }));
  const body = shown.map(drawRow);
  const empty = element("tr", {}, element("td", { colSpan: head.length, className: "none", textContent: "None." }));
  $("table").replaceChildren(
    element("thead", {}, element("tr", {}, ...cells)),
    element("tbody", {}, ...(body.length ? body : [empty])),
  );
};

const drawRow = (job) => {
  const { listing, result } = job;
  const button = element("button", { type: "button", className: "link", textContent: listing.id });
  button.dataset.job = jobs.indexOf(job);
  button.addEventListener("click", () => open(listing));
  const title = listing.title && element("span", { className: "row-title", textContent: listing.title });
  return element(
    "tr",
    {},
    element("td", {}, thumbnail(listing)),
    element("th", { scope: "row" }, button, title || null),
    ...answers(result),
  );
};

const thumbnail = ({ picture }) => {
  if (!picture) return element("span", { className: "sr", textContent: "none" });
  const address = URL.createObjectURL(picture);
  thumbnails.push(address);
  return element("img", { src: address, alt: "", width: 36, height: 48 });
};

const answers = (result) => {
  const colSpan = Math.max(1, names.length);
  if (!result) return [element("td", { colSpan, className: "none", textContent: "waiting" })];
  if (result.error) return [element("td", { colSpan, className: "failed", textContent: result.error.detail || result.error.title })];
  return names.map((name) => {
    const reading = result.attributes[name];
    return element(
      "td",
      { className: reading.accepted ? "accepted" : "abstained", title: reason(reading) },
      element("span", { className: "cell-label", textContent: reading.label }),
      element("span", { className: "number", textContent: `${percent(reading.confidence, 0)}${reading.accepted ? "" : ", abstained"}` }),
    );
  });
};

// ── the download ───────────────────────────────────────────────────────────────────────────────────────────

/** The same columns that `cma-clip label` writes. */
const table = () => {
  const header = names.flatMap((name) => [name, `${name}_confidence`, `${name}_accepted`, `${name}_image_weight`]);
  const rows = jobs
    .filter(({ result }) => result)
    .map(({ listing, result }) => [
      listing.id,
      ...names.flatMap((name) => {
        const reading = result.attributes?.[name];
        if (!reading) return ["", "", "", ""];
        return [reading.label, round(reading.confidence), reading.accepted, round(reading.modality_attention.image)];
      }),
      result.error ? `${result.error.code}: ${result.error.detail}` : "",
    ]);
  return [["id", ...header, "error"], ...rows];
};

const round = (value) => Number(value.toFixed(6));

// ── setting up ─────────────────────────────────────────────────────────────────────────────────────────────

/** A new target precision: what is in the table was judged by another, so it is all read anew. */
export const setPrecision = (value) => {
  precision = value;
  if (!jobs.length || sent === value) return;
  begin({ listings: jobs.map(({ listing }) => listing), notes: [...$("notes").children].map(({ textContent }) => textContent) });
};

/** `onOpen` is given the listing whose row is pressed. */
export const start = (onOpen) => {
  open = onOpen;
  for (const [button, input] of [["choose-files", "files"], ["choose-folder", "folder"]]) {
    $(button).addEventListener("click", () => $(input).click());
    $(input).addEventListener("change", async () => {
      const files = chosenFiles($(input));
      $(input).value = "";
      if (files.length) await readFiles(files);
    });
  }
  $("stop").addEventListener("click", () => running?.abort());
  $("go-on").addEventListener("click", run);
  $("download").addEventListener("click", () => save("labels.csv", writeCsv(table()), "text/csv"));
  $("filter-attribute").addEventListener("change", ({ target }) => {
    judge = target.value;
    page = 0;
    draw();
  });
  for (const [button, step] of [["previous", -1], ["next", 1]]) {
    $(button).addEventListener("click", () => {
      page += step;
      draw();
    });
  }
  service.addEventListener("key", () => waiting.length && run());
};
