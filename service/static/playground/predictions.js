// The predictions for one listing: one row per attribute.

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
    accepted ? "Accepted" : "Not accepted",
  );

/** Why a label is not accepted, in a word or two. A reason that this page doesn't know is shown as it is. */
export const shortReason = (abstention) =>
  ({
    unfamiliar_listing: "unfamiliar",
    not_applicable: "not applicable",
    not_certified: "not certified",
    modalities_disagree: "contradictory",
    low_confidence: "low confidence",
  })[abstention] ?? abstention.replaceAll("_", " ");

const REASONS = {
  unfamiliar_listing: () => "Unlike the products that the model was calibrated on",
  not_applicable: () => "Products of this type don’t have this attribute",
  not_certified: ({ target_precision: target }) => `Not shown to be right ${shortPercent(target)} of the time`,
  modalities_disagree: () => "Image and title contradict each other",
  low_confidence: () => "Not certain enough",
};

/** One line that says why a label was accepted or not, with the confidence. */
export const reason = (prediction) => {
  const { abstention, confidence, threshold } = prediction;
  const minimum = threshold === null ? "" : ` (${threshold < 0.0005 ? "no minimum" : `minimum ${percent(threshold)}`})`;
  const figures = `Confidence ${percent(confidence)}${minimum}`;
  return abstention === null ? figures : `${REASONS[abstention]?.(prediction) ?? shortReason(abstention)}. ${figures}`;
};

const bar = (prediction) => {
  const fill = element("span", { className: "fill" });
  fill.style.inlineSize = `${100 * prediction.confidence}%`;
  const mark = prediction.threshold === null ? null : element("span", { className: "mark" });
  if (mark) mark.style.insetInlineStart = `${100 * prediction.threshold}%`;
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

const NOTHING = 0.0005; // a confidence that would be shown as 0.0 %

const others = (prediction) => {
  const likely = prediction.others.filter(({ confidence }) => confidence >= NOTHING);
  if (!likely.length) return null;
  return element(
    "p",
    { className: "others" },
    element("span", { textContent: "or " }),
    ...likely.map(({ text, about, confidence }) =>
      element("span", { className: "other", title: about }, text, " ", element("span", { className: "number", textContent: percent(confidence) })),
    ),
  );
};

/**
 * One attribute's row. Its button shows the explanation of the label: temporarily on focus or hover, permanently once pressed.
 *
 * `summary`: the explanation in words. `slot`: where the heat map goes on a narrow screen.
 */
export const row = (name, prediction, summary) => {
  const id = `explanation-${name}`;
  const button = element(
    "button",
    { type: "button", className: "head", attributes: { "aria-pressed": "false", ...(summary && { "aria-describedby": id }) } },
    element("span", { className: "attribute", textContent: readable(name) }),
    element("span", { className: "label", textContent: prediction.text, title: prediction.about }),
  );
  const slot = element("div", { className: "slot", hidden: true });
  const item = element(
    "li",
    { className: `prediction ${prediction.accepted ? "accepted" : "abstained"}` },
    button,
    verdict(prediction.accepted),
    element(
      "div",
      { className: "confidence" },
      bar(prediction),
      element("p", { className: "why", textContent: reason(prediction) }),
      others(prediction),
    ),
    split(prediction.modality_attention),
    summary && element("p", { className: "sr", id, textContent: summary }),
    slot,
  );
  item.dataset.attribute = name;
  return { item, button, slot };
};
