// The view of one listing: the input, the request, and the predictions.

import { Problem, call, hasKey, pause, service, unreadable } from "./api.js";
import { viewOf } from "./attributes.js";
import { $, element, plural, segments, shortPercent, tabs } from "./dom.js";
import { describe, drawHeatMap, drawWords, legend } from "./explanation.js";
import { productMask } from "./ground.js";
import { row } from "./predictions.js";
import * as problems from "./problems.js";
import { remarkItem, remarksOf } from "./remarks.js";
import { curl, pythonCode } from "./snippets.js";

const TYPING_MS = 300;
const STALE_MS = 400; // an answer that is not for what is asked now is shown no longer than this
const EMPTY = "The predictions appear here as soon as you provide an image or a title. To try it out, choose one of the examples.";
const WAITING = "Waiting for the service.";
const EXAMPLES = [
  ["navy-shirt.jpg", "Turtle Check Men Navy Blue Shirt", "Navy shirt"],
  ["red-dress.jpg", "Femella Women Red Dress", "Red dress"],
  ["black-shoe.jpg", "Men Black Sports Shoes", "Sports shoe"],
  ["brown-watch.jpg", "Men Brown Leather Strap Watch", "Watch"],
  ["brown-handbag.jpg", "Women Brown Leather Handbag", "Handbag"],
  ["black-backpack.jpg", "Unisex Black Backpack", "Backpack"],
  ["oak-table.jpg", "Oak Dining Table for Six", "Unfamiliar"],
  ["brown-watch.jpg", "Unisex Black Backpack", "Contradictory"],
]; // image, title, name

// The title is in its input field. `taken`: the service has accepted the URL, so that the browser may load the image too;
// `product`: where on the image the product is.
const listing = { image: null, url: "", visible: true, taken: false, product: null };
const answer = { attributes: null, remarks: [], request: null, reply: null, rows: new Map(), pinned: null, shown: null, focused: null };
const model = { inputSize: [1, 1] };
let precision = null;
let current = null; // aborts the request in progress
let timer = 0;
let onPrecision = () => {};
let choices = 0; // examples chosen so far
let opened = false;

// ── the input ──────────────────────────────────────────────────────────────────────────────────────────────

/** Set the image to a File, or remove it. */
export const setImage = (file) => {
  if (listing.url) $("url").value = "";
  listing.url = "";
  checkUrl();
  replaceImage(file);
  changed();
};

/** Set the image to a URL. */
export const setUrl = (url) => {
  $("url").value = url;
  urlChanged(0);
};

/** Set the whole listing, from an example or a row of the table. */
export const setListing = ({ image, url, title }) => {
  $("title").value = title ?? "";
  $("url").value = url ?? "";
  listing.url = url ?? "";
  checkUrl();
  replaceImage(image ?? null);
  changed();
};

const replaceImage = (file) => {
  if (listing.image) URL.revokeObjectURL(listing.image.url);
  listing.image = file && { file, url: URL.createObjectURL(file) };
  Object.assign(listing, { visible: true, taken: false, product: null });
  answer.attributes = null; // its heat maps belong to the previous image
  showImage();
};

/** Where the browser has the image from: a file, or the URL once the service has accepted it; else null. */
const imageSource = () => listing.image?.url ?? (listing.url && listing.taken ? listing.url : null);

const showImage = () => {
  const image = $("image");
  const given = Boolean(listing.image || listing.url);
  const source = imageSource();
  $("shown").hidden = !given;
  $("choose").hidden = given;
  $("image-actions").hidden = !given;
  image.hidden = !source || !listing.visible;
  $("image-placeholder").hidden = !given || !image.hidden;
  $("image-placeholder").textContent =
    listing.url && !listing.taken ? "The image is shown here once the service has fetched it." : "The browser cannot display this image.";
  if (!source) image.removeAttribute("src");
  else if (image.getAttribute("src") !== source) image.src = source;
  fit();
};

const imageLoaded = () => {
  listing.product = productMask($("image"));
  fit();
};

/** Make the image as large as the frame allows at its aspect ratio, so that the heat map covers the image alone. */
const fit = () => {
  const image = $("image");
  const ratio = (image.hidden ? hiddenRatio() : image.naturalWidth / image.naturalHeight) || 1;
  const frame = $("frame");
  const wide = ratio > frame.clientWidth / frame.clientHeight;
  Object.assign($("shown").style, { aspectRatio: String(ratio), width: wide ? "100%" : "auto", height: wide ? "auto" : "100%" });
  showExplanation(answer.shown);
};

/** The aspect ratio of an image that only the service has: that of the model's input, without the padding. */
const hiddenRatio = () => {
  const [height, width] = model.inputSize;
  const { frame } = Object.values(answer.attributes ?? {})[0]?.explanation?.image ?? {};
  return (width / height) * (frame ? (frame.bottom - frame.top) / (frame.right - frame.left) : 1);
};

const checkUrl = () => {
  const text = $("url").value.trim();
  const valid = !text || (/^(https?:\/\/|data:)/i.test(text) && URL.canParse(text));
  $("url").setAttribute("aria-invalid", String(!valid));
  $("url-hint").textContent = valid ? "" : "A URL must start with https:// or http://";
  return valid;
};

const urlChanged = (delay) => {
  if (!checkUrl()) return;
  listing.url = $("url").value.trim();
  if (listing.url || !listing.image) replaceImage(null);
  changed(delay);
};

// ── the request ────────────────────────────────────────────────────────────────────────────────────────────

/** Send a new request once nothing has changed for `delay` milliseconds. Only the latest request is ever shown. */
const changed = (delay = 0) => {
  clearTimeout(timer);
  current?.abort();
  timer = setTimeout(classify, delay);
};

const requestOf = () => {
  const title = $("title").value.trim();
  const options = { ...(precision && { target_precision: precision }), explain: true };
  if (listing.image) {
    const fields = Object.fromEntries(Object.entries({ ...(title && { title }), ...options }).map(([name, value]) => [name, String(value)]));
    return { path: "v1/classify/upload", fields, file: listing.image.file.name };
  }
  if (!title && !listing.url) return null;
  return {
    path: "v1/classify",
    json: { ...(title && { title }), ...(listing.url && { image: { url: listing.url } }), ...options },
  };
};

const send = async ({ path, json, fields }, signal) => {
  if (json) return call(path, { json, signal });
  const { file } = listing.image;
  // A browser reports a form whose file it cannot read in the same way as a service that cannot be reached.
  await file.slice(0, 1).arrayBuffer().catch(() => { throw unreadable(file); });
  const form = new FormData();
  form.append("image", file);
  for (const [name, value] of Object.entries(fields)) form.append(name, value);
  return call(path, { form, signal });
};

const classify = async () => {
  current?.abort();
  const controller = new AbortController();
  current = controller;
  const request = requestOf();
  problems.clear($("problem"));
  if (!request) return clear();
  $("predictions").setAttribute("aria-busy", "true");
  const stale = setTimeout(() => clear(WAITING), STALE_MS);
  controller.signal.addEventListener("abort", () => clearTimeout(stale));
  for (let attempt = 1; ; attempt += 1) {
    try {
      const { reply, milliseconds } = await send(request, controller.signal);
      controller.signal.throwIfAborted();
      clearTimeout(stale);
      problems.clear($("problem"));
      return show(request, reply, milliseconds);
    } catch (error) {
      if (controller.signal.aborted) return undefined;
      clearTimeout(stale);
      if (!(error instanceof Problem)) throw error;
      clear();
      const tick = problems.show($("problem"), error, error.transient ? classify : null);
      if (!error.transient) return undefined;
      try {
        await pause(error.wait(attempt), controller.signal, tick);
      } catch {
        return undefined; // a newer request has been sent
      }
    }
  }
};

// ── the predictions ────────────────────────────────────────────────────────────────────────────────────────

const focusedRow = () => document.activeElement.closest?.(".prediction")?.dataset.attribute ?? null;

/** Remove the answer, and say why there is none. */
const clear = (hint = EMPTY) => {
  Object.assign(answer, { attributes: null, request: null, reply: null, focused: focusedRow() });
  answer.rows.clear();
  $("predictions").replaceChildren();
  $("remarks").replaceChildren();
  $("predictions").setAttribute("aria-busy", String(hint === WAITING));
  $("predictions-title").textContent = "Attributes";
  $("predictions-hint").textContent = hint;
  $("predictions-hint").hidden = false;
  $("predictions-key").hidden = true;
  $("announce").textContent = "";
  $("code").hidden = true;
  showExplanation(null);
};

const show = (request, reply, milliseconds) => {
  // The row that had the focus: in the answer before, or before that was removed while this one took long.
  const focused = focusedRow() ?? (document.activeElement === document.body ? answer.focused : null);
  answer.focused = null;
  const view = viewOf(reply);
  Object.assign(answer, { attributes: view.attributes, remarks: remarksOf(view), request, reply });
  answer.rows = new Map(
    Object.entries(answer.attributes).map(([name, prediction]) => [name, row(name, prediction, describe(prediction))]),
  );
  $("predictions").replaceChildren(...[...answer.rows.values()].map(({ item }) => item));
  $("remarks").replaceChildren(...answer.remarks.map(remarkItem));
  $("predictions").setAttribute("aria-busy", "false");
  for (const [name, { item, button }] of answer.rows) listen(name, item, button);
  answer.rows.get(focused)?.button.focus();
  pin(answer.rows.has(answer.pinned) ? answer.pinned : null);
  listing.taken = Boolean(listing.url);
  showImage();
  summarise(milliseconds);
  drawCode();
};

const summarise = (milliseconds) => {
  const predictions = Object.values(answer.attributes);
  const accepted = predictions.filter((prediction) => prediction.accepted).length;
  const target = predictions.length ? ` at ${shortPercent(predictions[0].target_precision)} precision` : "";
  $("predictions-title").textContent = `${accepted} of ${plural(predictions.length, "attribute")} accepted${target}`;
  $("predictions-hint").hidden = true;
  $("predictions-key").hidden = !predictions.length;
  const remarks = answer.remarks.map(({ title, text }) => ` ${title}: ${text}`).join("");
  $("announce").textContent = `${$("predictions-title").textContent}, in ${Math.round(milliseconds)} milliseconds.${remarks}`;
};

const listen = (name, item, button) => {
  item.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && showExplanation(name));
  item.addEventListener("pointerleave", () => showExplanation(answer.pinned));
  button.addEventListener("focus", () => showExplanation(name));
  button.addEventListener("blur", () => showExplanation(answer.pinned));
  button.addEventListener("click", () => pin(answer.pinned === name ? null : name));
};

/** Keep the explanation of one attribute on screen; null: of none. */
const pin = (name) => {
  answer.pinned = name;
  for (const [other, { item, button, slot }] of answer.rows) {
    button.setAttribute("aria-pressed", String(other === name));
    item.classList.toggle("pinned", other === name);
    slot.hidden = other !== name;
    slot.replaceChildren();
  }
  showExplanation(name);
  if (name && answer.attributes) fillSlot(name);
};

const showExplanation = (name) => {
  answer.shown = name;
  const prediction = name ? answer.attributes?.[name] : null;
  const grid = prediction?.explanation?.image ?? null;
  drawHeatMap($("heat"), grid, listing.product);
  const any = answer.attributes && Object.values(answer.attributes).find(({ explanation }) => explanation?.text?.length);
  const words = prediction?.explanation?.text ?? any?.explanation.text ?? null;
  $("words").hidden = !words;
  if (words) drawWords($("words"), words, Boolean(prediction));
  const summary = prediction ? describe(prediction) : "";
  $("explanation").hidden = !any && !grid && !summary;
  $("explanation").textContent = summary || "Point at an attribute, or select it, to see what its label is based on.";
  $("legend").hidden = !summary;
};

/** A narrow screen has the image far from the attribute: repeat it there, small, with the heat map. */
const fillSlot = (name) => {
  const { slot } = answer.rows.get(name);
  const { explanation } = answer.attributes[name];
  if (explanation?.image && imageSource() && listing.visible) {
    const canvas = element("canvas");
    const image = element("img", { src: imageSource(), alt: "", referrerPolicy: "no-referrer" });
    slot.append(element("div", { className: "shown" }, image, canvas));
    image.decode().then(() => drawHeatMap(canvas, explanation.image, productMask(image)), () => {});
  }
  if (explanation?.text?.length) {
    const words = element("p", { className: "words" });
    drawWords(words, explanation.text, true);
    slot.append(words);
  }
  slot.append(element("p", { className: "explanation", textContent: describe(answer.attributes[name]) }));
  if (explanation) slot.append(element("p", { className: "legend" }, ...legend()));
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
    // Browsers allow access to the clipboard only on https and localhost.
    getSelection().selectAllChildren($("code-text"));
    $("copied").textContent = "The browser does not allow this page to copy. The text is selected: press Ctrl+C or ⌘C.";
  }
};

// ── initialisation ─────────────────────────────────────────────────────────────────────────────────────────

/** Show the target precisions of the model. */
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
  openExample();
};

/** The page opens with an example, unless something has been entered already. */
const openExample = () => {
  if (opened) return;
  opened = true;
  const nothingEntered = () => !listing.image && !$("url").value && !$("title").value;
  if (!choices && nothingEntered()) chooseExample(EXAMPLES[0], nothingEntered);
};

/** Call `listener` with the target precision once the model is known, and whenever another one is chosen. */
export const watchPrecision = (listener) => {
  onPrecision = listener;
};

/** Show an example once its image is there, unless another one has been chosen meanwhile or `isWanted` says no. */
const chooseExample = async ([file, title], isWanted = () => true) => {
  choices += 1;
  const choice = choices;
  const bytes = await (await fetch(`static/examples/${file}`)).blob();
  if (choice !== choices || !isWanted()) return;
  setListing({ image: new File([bytes], file, { type: bytes.type }), title });
};

const drawExamples = () => {
  $("examples").replaceChildren(
    ...EXAMPLES.map((example) => {
      const [file, title, name] = example;
      const image = element("img", { src: `static/examples/${file}`, alt: "", width: 72, height: 96 });
      const button = element("button", { type: "button", title }, image, element("span", {}, name));
      button.addEventListener("click", () => chooseExample(example));
      return element("li", {}, button);
    }),
  );
};

export const start = () => {
  drawExamples();
  clear();
  $("legend").replaceChildren(...legend());
  $("image").referrerPolicy = "no-referrer";
  $("image").addEventListener("load", imageLoaded);
  $("image").addEventListener("error", () => {
    listing.visible = false;
    showImage();
  });
  new ResizeObserver(fit).observe($("frame"));
  for (const button of ["choose", "replace"]) $(button).addEventListener("click", () => $("file").click());
  $("file").addEventListener("change", () => {
    if ($("file").files.length) setImage($("file").files[0]);
    $("file").value = "";
  });
  $("remove").addEventListener("click", () => {
    setListing({ title: $("title").value });
    $("choose").focus();
  });
  $("clear").addEventListener("click", () => setListing({}));
  $("title").addEventListener("input", () => changed(TYPING_MS));
  $("url").addEventListener("input", () => urlChanged(2 * TYPING_MS));
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
