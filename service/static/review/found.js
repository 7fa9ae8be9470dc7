// What reviewers found of each promise, as a table.

import { call } from "../playground/api.js";
import { $, element, percent, plural, readable, shortPercent } from "../playground/dom.js";

const SITUATIONS = { image_and_title: "Image and title", image: "Image alone", title: "Title alone" };
const HEADINGS = ["Attribute", "Listings with", "Target", "Judged", "Right", "Skipped", "Precision", "At least", "At most", "Promise"];

const verdict = ({ broken, withdrawn, judged }) => {
  if (withdrawn) return "Not kept: nothing is accepted until it is calibrated anew";
  if (broken) return "Not kept";
  return judged ? "No sign that it is not kept" : "";
};

const row = (promise) => {
  const { attribute, situation, target, judged, right, skipped, precision, lower_bound: lower, upper_bound: upper } = promise;
  const cells = [
    SITUATIONS[situation], shortPercent(target), judged, right, skipped,
    precision === null ? "–" : percent(precision), percent(lower), percent(upper),
  ]; // prettier-ignore
  return element(
    "tr",
    {},
    element("th", { scope: "row", textContent: readable(attribute) }),
    ...cells.map((text) => element("td", { textContent: text })),
    element("td", { className: promise.broken || promise.withdrawn ? "broken" : "", textContent: verdict(promise) }),
  );
};

/** Draw the table; throws `Problem`. */
export const showFound = async () => {
  const { reply } = await call("v1/reviews/precision");
  const { model, start, week, promises, waiting } = reply;
  $("found-of").textContent =
    `${model.name} ${model.version}, ${model.engine}, calibration ${model.calibration ?? "none"}, listings of the week of ` +
    `${week} (start ${start}). ${plural(waiting.random, "pair")} of the sample wait, and ${plural(waiting.abstained, "abstention")}.`;
  const head = element("tr", {}, ...HEADINGS.map((text) => element("th", { scope: "col", textContent: text })));
  const rank = ({ broken, withdrawn }) => (broken || withdrawn ? 0 : 1); // what needs somebody comes first
  const judged = promises.filter((promise) => promise.judged > 0 || promise.withdrawn).sort((a, b) => rank(a) - rank(b));
  const rows = judged.length
    ? judged.map(row)
    : [element("tr", {}, element("td", { colSpan: HEADINGS.length, textContent: "No accepted label was judged yet." }))];
  $("promises").replaceChildren(element("thead", {}, head), element("tbody", {}, ...rows));
};
