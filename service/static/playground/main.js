// Sets up the playground: the two views, drag and drop, pasting, the state of the service, and the API key.

import { Problem, call, pause, service, useKey, watch } from "./api.js";
import { useAttributes } from "./attributes.js";
import * as batch from "./batch.js";
import { $, tabs } from "./dom.js";
import { droppedFiles, isImage } from "./files.js";
import * as single from "./single.js";

const STATES = {
  ready: "Ready",
  busy: "Busy",
  loading: "Not ready",
  unavailable: "Unavailable",
  locked: "API key required",
};

const select = tabs(document.querySelector(".top [role=tablist]"), (id) => {
  for (const view of ["one", "many"]) $(view).hidden = id !== `tab-${view}`;
});

// ── dropped and pasted files ───────────────────────────────────────────────────────────────────────────────

/** A single image goes to the view of one listing; anything else goes to the table. */
const takeFiles = async (files) => {
  const [first, ...more] = files;
  if (!first) return;
  if (!more.length && isImage(first.file) && !$("one").hidden) {
    single.setImage(first.file);
    return;
  }
  select("tab-many");
  await batch.readFiles(files);
};

const takeTransfer = async (transfer) => {
  const url = transfer.getData("text/uri-list").split("\n")[0].trim();
  const files = await droppedFiles(transfer);
  if (files.length) await takeFiles(files);
  else if (/^https?:/i.test(url)) {
    select("tab-one");
    single.setUrl(url);
  }
};

const listenForFiles = () => {
  let depth = 0; // dragenter and dragleave fire for every element that the pointer crosses
  const hover = (change) => {
    depth = Math.max(0, change === null ? 0 : depth + change);
    $("dropping").hidden = depth === 0;
  };
  addEventListener("dragenter", () => hover(1));
  addEventListener("dragleave", () => hover(-1));
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    hover(null);
    takeTransfer(event.dataTransfer);
  });
  addEventListener("paste", (event) => {
    const editing = event.target.closest?.("input, textarea");
    const text = event.clipboardData.getData("text/plain").trim();
    if (event.clipboardData.files.length) {
      event.preventDefault();
      takeTransfer(event.clipboardData);
    } else if (!editing && /^https?:\/\/\S+$/i.test(text)) {
      select("tab-one");
      single.setUrl(text);
    }
  });
};

// ── the service ────────────────────────────────────────────────────────────────────────────────────────────

const showState = ({ detail: state }) => {
  $("gone").hidden = state !== "unavailable";
  $("state").dataset.state = state;
  if ($("state-text").textContent !== STATES[state]) $("state-text").textContent = STATES[state];
  if (state === "locked") showKeyForm();
  else if (state === "ready") $("locked").hidden = true;
};

const showKeyForm = () => {
  const rejected = !$("locked").hidden && $("key").value;
  $("locked").hidden = false;
  $("key-hint").textContent = rejected ? "The service rejected this key." : $("key-hint").textContent;
  $("key").setAttribute("aria-invalid", String(Boolean(rejected)));
};

const describe = ({ name, version, engine, backbone, parameters, device, dtype, scope_gate: gate }) =>
  `${name} ${version} · ${backbone} · ${(parameters / 1e6).toFixed(1)} million parameters · ${engine} on ${device}, ${dtype}` +
  (gate ? "" : " · without a scope gate: unfamiliar listings are not recognised");

let loading = null;

/** Ask which model is served, until the service answers. */
const loadModel = async () => {
  loading?.abort();
  const controller = new AbortController();
  loading = controller;
  for (let attempt = 1; !controller.signal.aborted; attempt += 1) {
    try {
      const { reply } = await call("v1/model", { signal: controller.signal });
      useAttributes((await call("v1/attributes", { signal: controller.signal })).reply);
      $("model").textContent = describe(reply);
      single.setModel(reply);
      return;
    } catch (error) {
      if (controller.signal.aborted) return;
      if (!(error instanceof Problem)) throw error;
      if (!error.transient) return; // an API key is required, or a retry would not help
      await pause(error.wait(attempt), controller.signal).catch(() => {});
    }
  }
};

service.addEventListener("state", showState);
service.addEventListener("key", loadModel);
service.addEventListener("back", loadModel); // it may serve another model now
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey($("key").value.trim());
});
single.start();
single.watchPrecision(batch.setPrecision);
batch.start(({ image, url, title }) => {
  select("tab-one");
  single.setListing({ image, url, title });
  $("tab-one").focus();
});
listenForFiles();
watch();
await loadModel();
