// Puts the playground together: the two views, dropping and pasting anywhere, the service's state, the key.

import { Problem, call, pause, service, useKey } from "./api.js";
import * as batch from "./batch.js";
import { $, tabs } from "./dom.js";
import { droppedFiles, isPicture } from "./files.js";
import * as single from "./single.js";

const STATES = {
  ready: "Ready",
  busy: "Busy",
  loading: "Not ready",
  away: "Out of reach",
  locked: "Key needed",
};

const select = tabs(document.querySelector(".top [role=tablist]"), (id) => {
  for (const view of ["one", "many"]) $(view).hidden = id !== `tab-${view}`;
});

// ── files from anywhere ────────────────────────────────────────────────────────────────────────────────────

/** One picture is a listing; anything more belongs into the table. */
const takeFiles = async (files) => {
  const [first, ...more] = files;
  if (!first) return;
  if (!more.length && isPicture(first.file) && !$("one").hidden) {
    single.setPicture(first.file);
    return;
  }
  select("tab-many");
  await batch.readFiles(files);
};

const takeTransfer = async (transfer) => {
  const address = transfer.getData("text/uri-list").split("\n")[0].trim();
  const files = await droppedFiles(transfer);
  if (files.length) await takeFiles(files);
  else if (/^https?:/i.test(address)) {
    select("tab-one");
    single.setAddress(address);
  }
};

const listenForFiles = () => {
  let depth = 0; // dragenter and dragleave come for every element that is crossed
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
    const writing = event.target.closest?.("input, textarea");
    const text = event.clipboardData.getData("text/plain").trim();
    if (event.clipboardData.files.length) {
      event.preventDefault();
      takeTransfer(event.clipboardData);
    } else if (!writing && /^https?:\/\/\S+$/i.test(text)) {
      select("tab-one");
      single.setAddress(text);
    }
  });
};

// ── the service ────────────────────────────────────────────────────────────────────────────────────────────

const showState = ({ detail: state }) => {
  $("state").dataset.state = state;
  if ($("state-text").textContent !== STATES[state]) $("state-text").textContent = STATES[state];
  if (state === "locked") showKeyForm();
  else if (state === "ready") $("locked").hidden = true;
};

const showKeyForm = () => {
  const again = !$("locked").hidden && $("key").value;
  $("locked").hidden = false;
  $("key-hint").textContent = again ? "The service did not take that key." : $("key-hint").textContent;
  $("key").setAttribute("aria-invalid", String(Boolean(again)));
};

const describe = ({ name, version, backbone, parameters, device, dtype }) =>
  `${name} ${version} · ${backbone} · ${(parameters / 1e6).toFixed(1)} million parameters · ${device}, ${dtype}`;

let loading = null;

/** Learn what model is served; ask until the service says. */
const loadModel = async () => {
  loading?.abort();
  const asking = new AbortController();
  loading = asking;
  for (let attempt = 1; !asking.signal.aborted; attempt += 1) {
    try {
      const { reply } = await call("v1/model", { signal: asking.signal });
      $("model").textContent = describe(reply);
      single.setModel(reply);
      return;
    } catch (error) {
      if (asking.signal.aborted) return;
      if (!(error instanceof Problem)) throw error;
      if (!error.transient) return; // a key is asked for, or nothing here can help
      await pause(error.wait(attempt), asking.signal).catch(() => {});
    }
  }
};

service.addEventListener("state", showState);
service.addEventListener("key", loadModel);
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey($("key").value.trim());
});
single.start();
single.watchPrecision(batch.setPrecision);
batch.start(({ picture, address, title }) => {
  select("tab-one");
  single.setListing({ picture, address, title });
  $("tab-one").focus();
});
listenForFiles();
await loadModel();
