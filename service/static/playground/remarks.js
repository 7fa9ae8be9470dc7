// What is to be said of a listing as a whole: unfamiliar, contradictory, or not read as it was sent.

import { element, readable } from "./dom.js";

const WARNINGS = {
  title_truncated: "The title is longer than what the model reads: its end was cut.",
  title_ignored: "The title was ignored, since it is a placeholder, or unfamiliar beside a familiar image. The predictions are from the image alone.",
  profile_unreadable: "The image's colour profile cannot be read. Its colours were taken as sRGB.",
};

/** A p-value: two digits, and never a bare 0. */
const pValue = (value) => (value < 0.001 ? "below 0.001" : String(Number(value.toPrecision(2))));

const unfamiliar = ({ familiarity }) => ({
  kind: "unfamiliar",
  title: "Unfamiliar listing",
  text:
    "It is unlike the listings that the model was calibrated on, so the predictions below may be far off and none is " +
    `accepted. Familiarity: ${pValue(familiarity)} on a scale from 0 to 1.`,
});

const contradiction = ({ agreement }, names, everywhere) => ({
  kind: "contradiction",
  title: "Image and title contradict each other",
  text: everywhere
    ? `They seem to be of different products, so no prediction is accepted. Agreement: ${pValue(agreement)} on a scale from 0 to 1.`
    : `Each taken alone, they say something else about: ${names.map(readable).join(", ")}. What they agree on may be accepted.`,
});

/** The remarks about a reply: `{ kind, title, text }`, the gravest first. */
export const remarksOf = ({ scope, warnings, attributes }) => {
  const remarks = [];
  const names = Object.keys(attributes).filter((name) => attributes[name].abstention === "modalities_disagree");
  if (scope.in_scope === false) remarks.push(unfamiliar(scope));
  else if (names.length) {
    // A contradiction over the whole listing leaves no attribute accepted, nor judged by its confidence.
    const reasons = ["modalities_disagree", "not_applicable", "not_certified"];
    const everywhere = Object.values(attributes).every(({ abstention }) => reasons.includes(abstention));
    remarks.push(contradiction(scope, names, everywhere));
  }
  for (const warning of warnings) {
    remarks.push({ kind: "warning", title: "Note", text: WARNINGS[warning] ?? warning.replaceAll("_", " ") });
  }
  return remarks;
};

export const remarkItem = ({ kind, title, text }) =>
  element(
    "li",
    { className: `remark ${kind}` },
    element("strong", { textContent: title }),
    element("p", { textContent: text }),
  );
