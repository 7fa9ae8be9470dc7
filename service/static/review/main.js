// The page of reviewers: shows one product after the other, and sends what they decide.

import { Problem, call, hasKey, service, useKey, watch } from "../playground/api.js";
import { $, percent, plural, readable, tabs } from "../playground/dom.js";
import * as problems from "../playground/problems.js";
import { Chooser } from "./chooser.js";
import { showFound } from "./found.js";
import { Queue } from "./queue.js";

const NAME = "cma-clip-reviewer";
const LOOK_AGAIN_MS = 30_000;

const WHY = {
  random: "Part of a random sample. It is judged without the model's answer, so that you are not led by it.",
  abstained: "The model did not accept a label here. Your answer can teach it.",
};
const REASONS = {
  low_confidence: "Its confidence is below the threshold.",
  not_certified: "No threshold could be certified for this attribute.",
  modalities_disagree: "Image and title contradict each other.",
  unfamiliar_listing: "The product is unlike those that the model knows.",
};

let labels = {};
let queue = null;
let asked = false; // for items, with a key that would not do
let busy = false;

// ── what is shown ──────────────────────────────────────────────────────────────────────────────────────────

const announce = (text) => {
  $("announce").textContent = text;
};

const showProgress = () => {
  const { random, abstained } = queue.waiting;
  const waiting = (random + abstained).toLocaleString("en");
  $("progress").textContent = `${queue.reviewer}: ${plural(queue.judged, "decision")} made · ${waiting} waiting`;
};

const showItem = (said = "") => {
  const item = queue.current;
  $("who").hidden = true;
  $("work").hidden = item === null;
  $("done").hidden = item !== null;
  $("undo").disabled = $("undo-last").disabled = !queue.canUndo;
  showProgress();
  if (item === null) {
    announce(said);
    $("done-title").focus();
    return;
  }
  const { attribute, kind, title, id, image, label, candidates, multi_valued: several } = item;
  const name = readable(attribute);
  $("attribute").textContent = name;
  $("why").textContent = WHY[kind];
  $("title").textContent = title ?? "No title was sent";
  $("sku").textContent = id ?? "";
  $("image").hidden = image === null;
  $("no-image").hidden = image !== null;
  if (image !== null) $("image").src = `data:image/*;base64,${image.base64}`;
  $("suggestion").hidden = $("accept").hidden = label === null;
  $("label").textContent = label ?? "";
  $("confidence").textContent = label === null ? "" : percent(item.confidence);
  $("abstention").textContent = REASONS[item.abstention] ?? "";
  $("several").hidden = $("save").hidden = !several;
  $("none").disabled = false;
  chooser.show(labels[attribute] ?? [], candidates, several);
  chooser.focus();
  announce(`${said} ${name}${several ? ", all labels that fit," : ""} of ${title ?? "a product without a title"}.${label ? ` The model's best label: ${label}.` : ""}`.trim());
};

const fail = (error, retry = null) => {
  if (!(error instanceof Problem)) throw error;
  problems.show($("problem"), error, retry);
  if (error.code === "forbidden") $("locked").hidden = false; // for another key
};

const setBusy = (now) => {
  busy = now;
  $("judge").setAttribute("aria-busy", String(now));
};

/** Do one thing at a time, and show the next item afterwards. `work` returns what to announce. */
const act = async (work) => {
  if (busy || !queue) return;
  setBusy(true);
  try {
    const said = await work();
    problems.clear($("problem"));
    showItem(said);
  } catch (error) {
    fail(error);
    showItem();
  } finally {
    setBusy(false);
  }
};

const decide = (decision, choice, said) => act(async () => {
  await queue.decide(decision, choice);
  return said;
});

const chooser = new Chooser({
  choose: (label) => decide("label", { label }, `Saved: ${label}.`),
  save: (labels) => decide("label", { labels }, `Saved: ${labels.join(", ")}.`),
  changed: (labels) => {
    $("chosen").textContent = labels.length ? labels.join(", ") : "nothing yet";
    $("save").disabled = !labels.length;
    $("none").disabled = labels.length > 0;
    announce(labels.length ? `Chosen: ${labels.join(", ")}.` : "Nothing is chosen.");
  },
  accept: () => queue.current?.label && decide("label", { label: queue.current.label }, `Saved: ${queue.current.label}.`),
  none: () => decide("none", {}, "Saved: no label fits."),
  skip: () => decide("skip", {}, "Skipped."),
  undo: () => queue?.canUndo && act(async () => {
    await queue.undo();
    return "Undone.";
  }),
});

for (const name of ["accept", "none", "skip", "undo"]) $(name).addEventListener("click", () => chooser.actions[name]());
$("save").addEventListener("click", () => chooser.save());
$("undo-last").addEventListener("click", () => chooser.actions.undo());

// ── the views ──────────────────────────────────────────────────────────────────────────────────────────────

tabs(document.querySelector(".top [role=tablist]"), async (id) => {
  $("judge").hidden = id !== "tab-judge";
  $("found").hidden = id !== "tab-found";
  if (id === "tab-found") await showFound().catch(fail);
});

/** With an API key, its name says who reviews, and one's own name adds to it. */
const askForName = () => {
  $("name").required = !hasKey();
  $("with-key").hidden = !hasKey();
};

const start = async () => {
  const reviewer = $("name").value.trim();
  if (!reviewer && !hasKey()) return;
  asked = true;
  localStorage.setItem(NAME, reviewer);
  try {
    const { reply } = await call("v1/attributes");
    labels = Object.fromEntries(Object.entries(reply.attributes).map(([name, { labels: own }]) => [name, own]));
    const next = new Queue(reviewer || null);
    await next.fill();
    queue = next;
    problems.clear($("problem"));
    showItem();
  } catch (error) {
    fail(error, start);
  }
};

$("who").addEventListener("submit", (event) => {
  event.preventDefault();
  start();
});
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey($("key").value.trim());
});
service.addEventListener("state", ({ detail }) => {
  $("gone").hidden = detail !== "unavailable";
  $("locked").hidden = detail !== "locked" && ($("locked").hidden || detail === "ready");
});
service.addEventListener("key", () => {
  askForName();
  if (queue !== null) act(() => queue.fill());
  else if (asked || $("name").value.trim()) start();
  else look().then(() => $("name").focus());
});
setInterval(() => {
  if (queue !== null && queue.current === null && !document.hidden) act(() => queue.fill());
}, LOOK_AGAIN_MS);

const look = async () => {
  const { reply } = await call("v1/model").catch(() => ({ reply: null }));
  if (reply) $("model").textContent = `${reply.name} ${reply.version} · ${reply.engine}`;
};

$("name").value = localStorage.getItem(NAME) ?? "";
askForName();
watch();
await look();
