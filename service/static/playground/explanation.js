// What a label is based on: a heat map over the image, and the words of the title tinted by weight.

import { element, percent } from "./dom.js";

const STRONGEST = 0.65; // opacity of the patch with the greatest weight: the picture shows through even there

/**
 * The position of the image within the grid of weights, as fractions of the grid. It extends beyond the grid where the
 * model saw a crop of the image.
 *
 * This inverts the `frame` of the API: the position of the grid on the image, as fractions of the image.
 */
export const windowOf = ({ left, top, right, bottom }) => {
  const [width, height] = [1 / (right - left), 1 / (bottom - top)];
  return { left: -left * width, top: -top * height, width, height };
};

/**
 * Draw the part of the grid that lies on the image; null removes the heat map.
 *
 * `product`: the mask of `productMask`, which keeps the empty ground of the image free.
 */
export const drawHeatMap = (canvas, grid, product = null) => {
  const scale = window.devicePixelRatio || 1;
  canvas.width = Math.max(1, Math.round(canvas.clientWidth * scale));
  canvas.height = Math.max(1, Math.round(canvas.clientHeight * scale));
  canvas.parentElement.classList.toggle("heated", Boolean(grid)); // hides the words in place of an image
  if (!grid) return;
  const pen = canvas.getContext("2d");
  pen.imageSmoothingQuality = "high";
  const { left, top, width, height } = windowOf(grid.frame);
  pen.drawImage(
    patches(grid, getComputedStyle(canvas).getPropertyValue("--heat")),
    grid.columns * left, grid.rows * top, grid.columns * width, grid.rows * height,
    0, 0, canvas.width, canvas.height,
  );
  if (!product) return;
  pen.globalCompositeOperation = "destination-in";
  pen.drawImage(product, 0, 0, canvas.width, canvas.height);
};

/** A canvas with one pixel per patch; the browser interpolates when it scales it up. */
const patches = (grid, colour) => {
  const small = element("canvas", { width: grid.columns, height: grid.rows });
  const pen = small.getContext("2d");
  const greatest = Math.max(...grid.weights.flat());
  pen.fillStyle = colour;
  grid.weights.forEach((row, y) =>
    row.forEach((weight, x) => {
      pen.globalAlpha = greatest > 0 ? (STRONGEST * weight) / greatest : 0;
      pen.fillRect(x, y, 1, 1);
    }),
  );
  return small;
};

/** What the tint means, beside a sample of it. */
export const legend = () => [
  element("span", { className: "sample", attributes: { "aria-hidden": "true" } }),
  "The stronger the tint, the more the label depends on that part of the image or that word.",
];

/** Show the words of the title; if `weighted`, each with its share of the weight. */
export const drawWords = (container, words, weighted) => {
  const greatest = weighted ? Math.max(...words.map(({ weight }) => weight)) : 0;
  container.classList.toggle("weighted", Boolean(weighted));
  container.replaceChildren(
    ...words.flatMap(({ token, weight }) => {
      const word = element("span", { className: "word" }, element("span", { textContent: token }));
      if (weighted) {
        word.style.setProperty("--weight", greatest > 0 ? weight / greatest : 0);
        word.append(element("small", { textContent: percent(weight, 0) }));
      }
      return [word, " "];
    }),
  );
};

const NINTHS = [
  ["upper left", "top", "upper right"],
  ["left", "centre", "right"],
  ["lower left", "bottom", "lower right"],
];

/** The explanation in words. No part or word is named where all have the same weight. */
export const describe = ({ explanation, modality_attention: share }) => {
  const parts = [];
  if (explanation?.image && share.image > 0) {
    const best = hasMaximum(explanation.image.weights.flat()) ? `, mainly the ${place(explanation.image)}` : "";
    parts.push(`${percent(share.image, 0)} on the image${best}`);
  }
  if (explanation?.text?.length && share.text > 0) {
    const [best] = [...explanation.text].sort((one, other) => other.weight - one.weight);
    const named = hasMaximum(explanation.text.map(({ weight }) => weight)) ? `, mainly “${best.token}”` : "";
    parts.push(`${percent(share.text, 0)} on the title${named}`);
  }
  return parts.length ? `Based ${parts.join("; ")}.` : "";
};

/** Whether some weight is greater than another, or there is only one. */
const hasMaximum = (weights) => weights.length === 1 || Math.max(...weights) - Math.min(...weights) > 1e-6;

const place = ({ rows, columns, weights, frame }) => {
  const part = windowOf(frame);
  const flat = weights.flat();
  const at = flat.indexOf(Math.max(...flat));
  const third = (centre, start, size) => Math.min(2, Math.max(0, Math.floor((3 * (centre - start)) / size)));
  const row = third((Math.floor(at / columns) + 0.5) / rows, part.top, part.height);
  const column = third(((at % columns) + 0.5) / columns, part.left, part.width);
  return NINTHS[row][column];
};
