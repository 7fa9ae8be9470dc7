// The view of one listing: what is given, the request that follows, and its answer.

import { Problem, call, hasKey, pause, service, unreadable } from "./api.js";
import { $, element, plural, segments, shortPercent, tabs } from "./dom.js";
import { describe, drawHeat, drawWords } from "./evidence.js";
import { row } from "./readings.js";
import { curl, pythonCode } from "./snippets.js";
import * as trouble from "./trouble.js";

const TYPING_MS = 300;
const EXAMPLES = [
  ["navy-shirt.jpg", "Turtle Check Men Navy Blue Shirt"],
  ["red-dress.jpg", "Femella Women Red Dress"],
  ["black-shoe.jpg", "Men Black Sports Shoes"],
  ["brown-watch.jpg", "Men Brown Leather Strap Watch"],
];

const listing = { picture: null, address: "", visible: true }; // the title stands in its field
const answer = { attributes: null, request: null, reply: null, rows: new Map(), pinned: null, shown: null };
const model = { inputSize: [1, 1] };
let precision = null;
let current = null; // aborts the request that is under way
let timer = 0;
let onPrecision = () => {};

// ── what is given ──────────────────────────────────────────────────────────────────────────────────────────

/** Take a picture (a File), or none. */
export const setPicture = (file) => {
  if (listing.address) $("url").value = "";
  listing.address = "";
  checkAddress();
  takePicture(file);
  changed();
};

/** Take the address of a picture. */
export const setAddress = (address) => {
  $("url").value = address;
  addressTyped(0);
};

/** Take a whole listing, as an example or a row of the table gives it. */
export const setListing = ({ picture, address, title }) => {
  $("title").value = title ?? "";
  $("url").value = address ?? "";
  listing.address = address ?? "";
  checkAddress();
  takePicture(picture ?? null);
  changed();
};

const takePicture = (file) => {
  if (listing.picture) URL.revokeObjectURL(listing.picture.address);
  listing.picture = file && { file, address: URL.createObjectURL(file) };
  listing.visible = true;
  answer.attributes = null; // the heat of another picture has no place on this one
  drawPicture();
};

const drawPicture = () => {
  const image = $("picture");
  const given = Boolean(listing.picture || listing.address);
  $("shown").hidden = !given;
  $("choose").hidden = given;
  $("picture-actions").hidden = !given;
  image.hidden = !listing.picture || !listing.visible;
  $("blind").hidden = !given || !image.hidden;
  $("blind").textContent = listing.address
    ? "The service fetches this picture itself; this page loads nothing from elsewhere."
    : "The browser cannot show this picture.";
  if (!listing.picture) image.removeAttribute("src");
  else if (image.src !== listing.picture.address) image.src = listing.picture.address;
  fit();
};

/** Give the picture as much of the frame as its shape allows, so that the heat lies on it and nothing else. */
const fit = () => {
  const image = $("picture");
  const ratio = (image.hidden ? unseenRatio() : image.naturalWidth / image.naturalHeight) || 1;
  const frame = $("frame");
  const wide = ratio > frame.clientWidth / frame.clientHeight;
  Object.assign($("shown").style, { aspectRatio: String(ratio), width: wide ? "100%" : "auto", height: wide ? "auto" : "100%" });
  showEvidence(answer.shown);
};

/** Width to height of a picture that only the service has seen: of the model's input, without what was padded. */
const unseenRatio = () => {
  const [height, width] = model.inputSize;
  const { frame } = Object.values(answer.attributes ?? {})[0]?.explanation?.image ?? {};
  return (width / height) * (frame ? (frame.bottom - frame.top) / (frame.right - frame.left) : 1);
};

const checkAddress = () => {
  const text = $("url").value.trim();
  const fine = !text || (/^https?:\/\//i.test(text) && URL.canParse(text));
  $("url").setAttribute("aria-invalid", String(!fine));
  $("url-hint").textContent = fine ? "" : "An address begins with https:// or http://";
  return fine;
};

const addressTyped = (delay) => {
  if (!checkAddress()) return;
  listing.address = $("url").value.trim();
  if (listing.address || !listing.picture) takePicture(null);
  changed(delay);
};

// ── the request ────────────────────────────────────────────────────────────────────────────────────────────

/** Ask again, once nothing has changed for `delay` milliseconds. Only the latest request is ever answered. */
const changed = (delay = 0) => {
  clearTimeout(timer);
  current?.abort();
  timer = setTimeout(ask, delay);
};

const requestOf = () => {
  const title = $("title").value.trim();
  const options = { ...(precision && { target_precision: precision }), explain: true };
  if (listing.picture) {
    const fields = Object.fromEntries(Object.entries({ ...(title && { title }), ...options }).map(([name, value]) => [name, String(value)]));
    return { path: "v1/classify/upload", fields, file: listing.picture.file.name };
  }
  if (!title && !listing.address) return null;
  return {
    path: "v1/classify",
    json: { ...(title && { title }), ...(listing.address && { image: { url: listing.address } }), ...options },
  };
};

const send = async ({ path, json, fields }, signal) => {
  if (json) return call(path, { json, signal });
  const { file } = listing.picture;
  // What a browser says of a form whose file it cannot read is what it says of a service that is away.
  await file.slice(0, 1).arrayBuffer().catch(() => { throw unreadable(file); });
  const form = new FormData();
  form.append("image", file);
  for (const [name, value] of Object.entries(fields)) form.append(name, value);
  return call(path, { form, signal });
};

const ask = async () => {
  current?.abort();
  const asking = new AbortController();
  current = asking;
  const request = requestOf();
  trouble.clear($("trouble"));
  if (!request) return forget();
  $("readings").setAttribute("aria-busy", "true");
  for (let attempt = 1; ; attempt += 1) {
    try {
      const { reply, milliseconds } = await send(request, asking.signal);
      asking.signal.throwIfAborted();
      trouble.clear($("trouble"));
      return show(request, reply, milliseconds);
    } catch (error) {
      if (asking.signal.aborted) return undefined;
      if (!(error instanceof Problem)) throw error;
      forget();
      const tick = trouble.show($("trouble"), error, error.transient ? ask : null);
      if (!error.transient) return undefined;
      try {
        await pause(error.wait(attempt), asking.signal, tick);
      } catch {
        return undefined; // something newer is being asked
      }
    }
  }
};

// ── the answer ─────────────────────────────────────────────────────────────────────────────────────────────

const forget = () => {
  Object.assign(answer, { attributes: null, request: null, reply: null });
  answer.rows.clear();
  $("readings").replaceChildren();
  $("readings").setAttribute("aria-busy", "false");
  $("readings-title").textContent = "Attributes";
  $("readings-hint").hidden = false;
  $("announce").textContent = "";
  $("code").hidden = true;
  showEvidence(null);
};

const show = (request, reply, milliseconds) => {
  const focused = document.activeElement.closest?.(".reading")?.dataset.attribute;
  Object.assign(answer, { attributes: reply.attributes, request, reply });
  answer.rows = new Map(
    Object.entries(reply.attributes).map(([name, reading]) => [name, row(name, reading, describe(reading))]),
  );
  $("readings").replaceChildren(...[...answer.rows.values()].map(({ item }) => item));
  $("readings").setAttribute("aria-busy", "false");
  for (const [name, { item, button }] of answer.rows) listen(name, item, button);
  answer.rows.get(focused)?.button.focus();
  pin(answer.rows.has(answer.pinned) ? answer.pinned : null);
  fit();
  summarise(milliseconds);
  drawCode();
};

const summarise = (milliseconds) => {
  const readings = Object.values(answer.attributes);
  const accepted = readings.filter((reading) => reading.accepted).length;
  const target = readings.length ? ` at ${shortPercent(readings[0].target_precision)} precision` : "";
  $("readings-title").textContent = `${accepted} of ${plural(readings.length, "attribute")} accepted${target}`;
  $("readings-hint").hidden = true;
  $("announce").textContent = `${$("readings-title").textContent}, in ${Math.round(milliseconds)} milliseconds.`;
};

const listen = (name, item, button) => {
  item.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && showEvidence(name));
  item.addEventListener("pointerleave", () => showEvidence(answer.pinned));
  button.addEventListener("focus", () => showEvidence(name));
  button.addEventListener("blur", () => showEvidence(answer.pinned));
  button.addEventListener("click", () => pin(answer.pinned === name ? null : name));
};

/** Keep one attribute's evidence in sight; null: none. */
const pin = (name) => {
  answer.pinned = name;
  for (const [other, { item, button, slot }] of answer.rows) {
    button.setAttribute("aria-pressed", String(other === name));
    item.classList.toggle("pinned", other === name);
    slot.hidden = other !== name;
    slot.replaceChildren();
  }
  showEvidence(name);
  if (name && answer.attributes) fillSlot(name);
};

const showEvidence = (name) => {
  answer.shown = name;
  const reading = name ? answer.attributes?.[name] : null;
  const grid = reading?.explanation?.image ?? null;
  drawHeat($("heat"), grid);
  const any = answer.attributes && Object.values(answer.attributes).find(({ explanation }) => explanation?.text?.length);
  const words = reading?.explanation?.text ?? any?.explanation.text ?? null;
  $("words").hidden = !words;
  if (words) drawWords($("words"), words, Boolean(reading));
  const summary = reading ? describe(reading) : "";
  $("looked").hidden = !any && !grid && !summary;
  $("looked").textContent = summary || "Point at an attribute, or press it, to see what it leaned on.";
};

/** On a narrow screen the picture is far away: show it once more, small, below the attribute. */
const fillSlot = (name) => {
  const { slot } = answer.rows.get(name);
  const { explanation } = answer.attributes[name];
  if (explanation?.image && listing.picture && listing.visible) {
    const canvas = element("canvas");
    const image = element("img", { src: listing.picture.address, alt: "" });
    slot.append(element("div", { className: "shown" }, image, canvas));
    image.decode().then(() => drawHeat(canvas, explanation.image), () => {});
  }
  if (explanation?.text?.length) {
    const words = element("p", { className: "words" });
    drawWords(words, explanation.text, true);
    slot.append(words);
  }
  slot.append(element("p", { className: "looked", textContent: describe(answer.attributes[name]) }));
};

// ── the request as code ────────────────────────────────────────────────────────────────────────────────────

let form = "tab-curl";

const drawCode = () => {
  $("code").hidden = !answer.request;
  if (!answer.request) return;
  const origin = document.baseURI;
  const texts = {
    "tab-curl": () => curl(answer.request, origin, hasKey()),
    "tab-python": () => pythonCode(answer.request, origin, hasKey()),
    "tab-json": () => `${JSON.stringify(answer.reply, null, 2)}\n`,
  };
  $("code-text").textContent = texts[form]();
  $("code-text").setAttribute("aria-labelledby", form);
  $("copied").textContent = "";
};

const copy = async () => {
  try {
    await navigator.clipboard.writeText($("code-text").textContent);
    $("copied").textContent = "Copied.";
  } catch {
    // Browsers give the clipboard to https and localhost alone.
    getSelection().selectAllChildren($("code-text"));
    $("copied").textContent = "The browser does not let this page copy: the text is selected, press Ctrl+C or ⌘C.";
  }
};

// ── setting up ─────────────────────────────────────────────────────────────────────────────────────────────

/** Know the model: its precisions can be chosen. */
export const setModel = ({ image_size: inputSize, target_precisions: targets }) => {
  model.inputSize = inputSize;
  $("precision").hidden = !targets.length;
  if (!targets.includes(precision)) precision = targets.includes(0.95) ? 0.95 : (targets.at(-1) ?? null);
  segments($("precisions"), "precision", targets.map((target) => [target, shortPercent(target)]), precision, (chosen) => {
    precision = Number(chosen);
    changed();
    onPrecision(precision);
  });
  onPrecision(precision);
  fit();
};

/** Call `listener` with the target precision, now and whenever another is chosen. */
export const watchPrecision = (listener) => {
  onPrecision = listener;
};

const drawExamples = () => {
  $("examples").replaceChildren(
    ...EXAMPLES.map(([file, title]) => {
      const address = `static/examples/${file}`;
      const button = element("button", { type: "button", title }, element("img", { src: address, alt: title, width: 72, height: 96 }));
      button.addEventListener("click", async () => {
        const bytes = await (await fetch(address)).blob();
        setListing({ picture: new File([bytes], file, { type: bytes.type }), title });
      });
      return element("li", {}, button);
    }),
  );
};

export const start = () => {
  drawExamples();
  $("picture").addEventListener("load", fit);
  $("picture").addEventListener("error", () => {
    listing.visible = false;
    drawPicture();
  });
  new ResizeObserver(fit).observe($("frame"));
  for (const button of ["choose", "replace"]) $(button).addEventListener("click", () => $("file").click());
  $("file").addEventListener("change", () => {
    if ($("file").files.length) setPicture($("file").files[0]);
    $("file").value = "";
  });
  $("remove").addEventListener("click", () => {
    setListing({ title: $("title").value });
    $("choose").focus();
  });
  $("title").addEventListener("input", () => changed(TYPING_MS));
  $("url").addEventListener("input", () => addressTyped(2 * TYPING_MS));
  $("listing-form").addEventListener("submit", (event) => {
    event.preventDefault();
    changed();
  });
  document.addEventListener("keydown", (event) => event.key === "Escape" && pin(null));
  tabs($("code").querySelector("[role=tablist]"), (id) => {
    form = id;
    drawCode();
  });
  $("copy").addEventListener("click", copy);
  service.addEventListener("key", () => changed());
};
