// The view of many listings: the files, and the table of predictions.

import { Problem, service } from "./api.js";
import { joinCells, viewOf } from "./attributes.js";
import { writeCsv } from "./csv.js";
import { $, element, percent, plural, readable, save, segments } from "./dom.js";
import { chosenFiles, listingsOf } from "./files.js";
import { reason, shortReason } from "./predictions.js";
import * as problems from "./problems.js";
import { sendAll } from "./sender.js";

const PAGE = 25;
/** What can be shown: the filter's text for a count, and how many of a job's labels, or whether the job itself, counts. */
const FILTERS = {
  all: [(count) => plural(count, "listing"), () => 1],
  accepted: [(count) => `${plural(count, "label")} accepted`, (job) => predictionsOf(job).filter(({ accepted }) => accepted).length],
  rest: [(count) => `${plural(count, "label")} not accepted`, (job) => predictionsOf(job).filter(({ accepted }) => !accepted).length],
  unfamiliar: [
    (count) => `${plural(count, "listing")} unfamiliar`,
    (job) => Number(predictionsOf(job).some(({ abstention }) => abstention === "unfamiliar_listing")),
  ],
  failed: [(count) => `${plural(count, "listing")} failed`, ({ result }) => Number(Boolean(result?.error))],
};
const EXAMPLE = "static/playground/example.csv";

let jobs = []; // in the order of the table: { listing, attempts, done, result }
let waiting = []; // those without a result
let names = []; // of the attributes, known from the first result on
let filter = "all";
let filterAttribute = ""; // the attribute that the filter looks at; empty: all of them
let page = 0;
let running = null;
let precision = null;
let requestedPrecision = null; // the target precision of the results in the table
let given = []; // the files that were read last
let thumbnails = [];
let open = () => {};

// ── classification ─────────────────────────────────────────────────────────────────────────────────────────

/** Read the listings from these files (`{ file, path }`), and classify them. */
export const readFiles = async (files) => {
  running?.abort();
  given = files;
  problems.clear($("many-problem"));
  let found;
  try {
    found = await listingsOf(files, { allowMissing: $("allow-missing").checked });
  } catch (error) {
    problems.show($("many-problem"), new Problem({ code: "invalid_request", detail: error.message }));
    return;
  }
  if (!found.listings.length) {
    problems.show($("many-problem"), new Problem({ code: "unsupported_media_type", detail: "These files contain no listings." }));
    return;
  }
  begin(found);
};

const begin = ({ listings, notes }) => {
  jobs = listings.map((listing) => ({ listing, attempts: 0, done: false, result: null }));
  for (const job of jobs.filter(({ listing }) => listing.error)) {
    Object.assign(job, { done: true, result: { error: { code: "invalid_request", detail: job.listing.error } } });
  }
  waiting = jobs.filter(({ done }) => !done);
  [names, filter, filterAttribute, page, requestedPrecision] = [[], "all", "", 0, precision];
  $("notes").replaceChildren(...notes.map((note) => element("li", { textContent: note })));
  $("work").hidden = false;
  drawFilters();
  draw();
  run();
};

const run = async () => {
  running?.abort();
  const controller = new AbortController();
  running = controller;
  problems.clear($("many-problem"));
  $("stop").hidden = false;
  $("resume").hidden = true;
  try {
    const options = requestedPrecision ? { target_precision: requestedPrecision } : {};
    await sendAll(waiting, options, { signal: controller.signal, onDone, onWait });
    $("many-announce").textContent = `Done. ${progress()}`;
  } catch (error) {
    if (running !== controller) return; // a newer run has replaced this one
    if (error instanceof Problem) problems.show($("many-problem"), error);
    else if (!controller.signal.aborted) throw error;
    $("many-announce").textContent = `Stopped. ${progress()}`;
  }
  if (running !== controller) return;
  $("stop").hidden = true;
  $("resume").hidden = !waiting.length;
  draw();
};

const onDone = (job, result) => {
  job.result = viewOf(result);
  if (!names.length && result.attributes) {
    names = Object.keys(result.attributes);
    const options = names.map((name) => element("option", { value: name, textContent: readable(name) }));
    $("filter-attribute").replaceChildren(element("option", { value: "", textContent: "All attributes" }), ...options);
  }
  scheduleDraw();
};

const onWait = (problem, seconds) => {
  $("progress-text").textContent = `${progress()} ${problem.title}. Retrying in ${seconds} s.`;
};

const progress = () => {
  const done = jobs.filter(({ result }) => result).length;
  return `${done.toLocaleString("en")} of ${plural(jobs.length, "listing")} processed.`;
};

// ── the table ──────────────────────────────────────────────────────────────────────────────────────────────

let scheduled = false;

/** Draw once for all the results of a batch. */
const scheduleDraw = () => {
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(() => {
    scheduled = false;
    draw();
  });
};

const predictionsOf = ({ result }) => {
  if (!result?.attributes) return [];
  return filterAttribute ? [result.attributes[filterAttribute]] : Object.values(result.attributes);
};

const passes = (which) => (job) => FILTERS[which][1](job) > 0;

const filterText = (which) => {
  const [text, count] = FILTERS[which];
  return text(jobs.reduce((sum, job) => sum + count(job), 0));
};

const drawFilters = () => {
  const options = Object.keys(FILTERS).map((value) => [value, filterText(value)]);
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
    radio.nextSibling.textContent = filterText(radio.value);
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
  thumbnails.forEach((url) => URL.revokeObjectURL(url));
  thumbnails = [];
  const head = ["Image", "Listing", ...names];
  const cells = head.map((name, at) =>
    at < 2 ? element("th", { scope: "col", textContent: name }) : element("th", { scope: "col" }, readable(name), acceptedOf(name)),
  );
  const body = shown.map(drawRow);
  const empty = element("tr", {}, element("td", { colSpan: head.length, className: "none", textContent: "No listings." }));
  $("table").replaceChildren(
    element("thead", {}, element("tr", {}, ...cells)),
    element("tbody", {}, ...(body.length ? body : [empty])),
  );
};

/** How many listings have an accepted label of an attribute. */
const acceptedOf = (name) => {
  const answered = jobs.filter(({ result }) => result?.attributes);
  const accepted = answered.filter(({ result }) => result.attributes[name].accepted).length;
  return element("span", { className: "number", textContent: `${accepted.toLocaleString("en")} of ${answered.length.toLocaleString("en")} accepted` });
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
    element("td", {}, thumbnail(listing, result)),
    element("th", { scope: "row" }, button, title || null),
    ...resultCells(result),
  );
};

const thumbnail = ({ image, url }, result) => {
  const isFetched = url && result?.attributes; // the browser loads no URL that the service has refused
  if (!image && !isFetched) return element("span", { className: "sr", textContent: "none" });
  const src = image ? URL.createObjectURL(image) : url;
  if (image) thumbnails.push(src);
  const shown = element("img", { alt: "", width: 36, height: 48, referrerPolicy: "no-referrer", loading: image ? "eager" : "lazy" });
  shown.src = src;
  return shown;
};

const confidenceCell = ({ abstention, confidence }) =>
  `${percent(confidence, 0)}${abstention === null ? "" : `, ${shortReason(abstention)}`}`;

const resultCells = (result) => {
  const colSpan = Math.max(1, names.length);
  if (!result) return [element("td", { colSpan, className: "none", textContent: "waiting" })];
  if (result.error) return [element("td", { colSpan, className: "failed", textContent: result.error.detail || result.error.title })];
  return names.map((name) => {
    const prediction = result.attributes[name];
    return element(
      "td",
      { className: prediction.accepted ? "accepted" : "abstained", title: reason(prediction) },
      element("span", { className: "cell-label", textContent: prediction.text }),
      element("span", { className: "number", textContent: confidenceCell(prediction) }),
    );
  });
};

// ── the download ───────────────────────────────────────────────────────────────────────────────────────────

const COLUMNS = ["", "_suggestion", "_confidence", "_abstention", "_image_weight"];

/** An attribute's cells: accepted labels and what is only suggested never stand in one column. */
const cellsOf = (name, prediction) => {
  if (!prediction) return COLUMNS.map(() => "");
  const verdicts = prediction.labels ?? [prediction];
  const accepted = verdicts.filter((each) => each.accepted);
  const suggested = verdicts.filter((each) => !each.accepted);
  const cells = [
    accepted.map(({ label }) => label),
    suggested.map(({ label }) => label),
    [...accepted, ...suggested].map(({ confidence }) => round(confidence)),
    suggested.map(({ abstention }) => abstention),
    [round(prediction.modality_attention.image)],
  ];
  return cells.map((values) => joinCells(name, values));
};

/** The table with the columns that `examples/client.py` writes, and what they come from. */
const table = () => {
  const header = names.flatMap((name) => COLUMNS.map((column) => `${name}${column}`));
  const rows = jobs
    .filter(({ result }) => result)
    .map(({ listing, result }) => [
      listing.id,
      ...names.flatMap((name) => cellsOf(name, result.attributes?.[name])),
      round(result.scope?.familiarity ?? null),
      result.error ? `${result.error.code}: ${result.error.detail}` : "",
      result.model?.version ?? "",
      result.model?.calibration ?? "",
      requestedPrecision ?? "",
    ]);
  return [["id", ...header, "familiarity", "error", "model_version", "calibration", "target_precision"], ...rows];
};

const round = (value) => (value === null ? "" : Number(value.toFixed(6)));

// ── the example ────────────────────────────────────────────────────────────────────────────────────────────

/** Classify the example table, whose ids are the names of the example images. */
const tryExample = async () => {
  const csv = await (await fetch(EXAMPLE)).blob();
  const ids = (await csv.text()).split("\n").slice(1).map((line) => line.split(",")[0]).filter(Boolean);
  const images = await Promise.all(
    ids.map(async (id) => new File([await (await fetch(`static/examples/${id}.jpg`)).blob()], `${id}.jpg`, { type: "image/jpeg" })),
  );
  await readFiles([new File([csv], "example.csv"), ...images].map((file) => ({ file, path: file.name })));
};

// ── initialisation ─────────────────────────────────────────────────────────────────────────────────────────

/** Set the target precision. If the table was made with a different one, classify its listings again. */
export const setPrecision = (value) => {
  precision = value;
  if (!jobs.length || requestedPrecision === value) return;
  begin({ listings: jobs.map(({ listing }) => listing), notes: [...$("notes").children].map(({ textContent }) => textContent) });
};

/** `onOpen` is called with the listing whose row is selected. */
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
  $("allow-missing").addEventListener("change", () => given.length && readFiles(given));
  $("try-table").addEventListener("click", tryExample);
  $("stop").addEventListener("click", () => running?.abort());
  $("resume").addEventListener("click", run);
  $("download").addEventListener("click", () => save("labels.csv", writeCsv(table()), "text/csv"));
  $("filter-attribute").addEventListener("change", ({ target }) => {
    filterAttribute = target.value;
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
