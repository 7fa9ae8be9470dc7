// The answer for one listing: a row an attribute.

import { element, percent, readable, shortPercent } from "./dom.js";

const TICK = "M3 8.5l3.2 3L13 5";
const DASH = "M4 8h8";

const icon = (path) => {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "path");
  svg.setAttribute("viewBox", "0 0 16 16");
  svg.setAttribute("aria-hidden", "true");
  line.setAttribute("d", path);
  svg.append(line);
  return svg;
};

export const verdict = (accepted) =>
  element(
    "p",
    { className: `verdict ${accepted ? "accepted" : "abstained"}` },
    icon(accepted ? TICK : DASH),
    accepted ? "Accepted" : "Abstained",
  );

/** Why a label was accepted or not, in one line. */
export const reason = ({ confidence, accepted, threshold, target_precision: target }) => {
  if (threshold === null) return `No confidence is enough: nothing could be certified at ${shortPercent(target)}`;
  if (threshold < 0.0005) return `${percent(confidence)} sure; any confidence is enough here`;
  return accepted
    ? `${percent(confidence)} sure; ${percent(threshold)} is enough`
    : `${percent(confidence)} sure; it takes ${percent(threshold)}`;
};

const bar = (reading) => {
  const fill = element("span", { className: "fill" });
  fill.style.inlineSize = `${100 * reading.confidence}%`;
  const mark = reading.threshold === null ? null : element("span", { className: "mark" });
  if (mark) mark.style.insetInlineStart = `${100 * reading.threshold}%`;
  return element("div", { className: "bar", attributes: { "aria-hidden": "true" } }, fill, mark);
};

const split = ({ image, text }) => {
  const left = element("span", { className: "image" });
  const right = element("span", { className: "text" });
  left.style.flexGrow = image;
  right.style.flexGrow = text;
  return element(
    "div",
    { className: "modalities" },
    element("div", { className: "split", attributes: { "aria-hidden": "true" } }, image > 0 ? left : null, text > 0 ? right : null),
    element(
      "p",
      { className: "shares" },
      element("span", { textContent: `Image ${percent(image, 0)}` }),
      element("span", { textContent: `Title ${percent(text, 0)}` }),
    ),
  );
};

const others = ({ candidates }) =>
  candidates.length < 2
    ? null
    : element(
        "p",
        { className: "others" },
        element("span", { textContent: "or " }),
        ...candidates.slice(1).map(({ label, confidence }) =>
          element("span", { className: "other" }, label, " ", element("span", { className: "number", textContent: percent(confidence) })),
        ),
      );

/**
 * One attribute's row. Its button shows what the answer looked at: on focus or hover for the moment, pressed for good.
 *
 * `summary`: what the heat shows, in words. `slot`: where a narrow screen shows the heat itself.
 */
export const row = (name, reading, summary) => {
  const id = `looked-${name}`;
  const button = element(
    "button",
    { type: "button", className: "head", attributes: { "aria-pressed": "false", ...(summary && { "aria-describedby": id }) } },
    element("span", { className: "attribute", textContent: readable(name) }),
    element("span", { className: "label", textContent: reading.label }),
  );
  const slot = element("div", { className: "slot", hidden: true });
  const item = element(
    "li",
    { className: `reading ${reading.accepted ? "accepted" : "abstained"}` },
    button,
    verdict(reading.accepted),
    element("div", { className: "confidence" }, bar(reading), element("p", { className: "why", textContent: reason(reading) })),
    split(reading.modality_attention),
    others(reading),
    summary && element("p", { className: "sr", id, textContent: summary }),
    slot,
  );
  item.dataset.attribute = name;
  return { item, button, slot };
};
