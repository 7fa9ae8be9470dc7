// Tells a product from the empty ground around it, as `service/commands/heat_map.py` does: a heat map belongs on the product.

import { element } from "./dom.js";

const EXAMINED = 160; // pixels of the longer side
const TOLERANCE = 26; // how far a pixel of the ground may be from its colour, of 255 in any channel
const LEAST_BORDER = 0.5; // share of the pixels along the edges that must have the colour of the ground
const LEAST_PRODUCT = 0.02; // share of the image: less is no product, but a plain image

const median = (values) => values.sort((one, other) => one - other)[Math.floor(values.length / 2)];

/** Positions of the pixels along the edges. */
const edges = (width, height) => {
  const found = [];
  for (let x = 0; x < width; x += 1) found.push(x, (height - 1) * width + x);
  for (let y = 0; y < height; y += 1) found.push(y * width, y * width + width - 1);
  return found;
};

/** Which pixels are ground: of the commonest colour along the edges, and connected with an edge; null where there is none. */
const groundOf = ({ data, width, height }) => {
  const border = edges(width, height);
  const colour = [0, 1, 2].map((channel) => median(border.map((at) => data[4 * at + channel])));
  const isAlike = (at) => colour.every((value, channel) => Math.abs(data[4 * at + channel] - value) <= TOLERANCE);
  const waiting = border.filter(isAlike);
  if (waiting.length < LEAST_BORDER * border.length) return null;
  const ground = new Uint8Array(width * height);
  for (const at of waiting) ground[at] = 1;
  while (waiting.length) {
    const at = waiting.pop();
    const x = at % width;
    for (const next of [x > 0 ? at - 1 : -1, x < width - 1 ? at + 1 : -1, at - width, at + width]) {
      if (next < 0 || next >= ground.length || ground[next] || !isAlike(next)) continue;
      ground[next] = 1;
      waiting.push(next);
    }
  }
  const product = ground.length - ground.reduce((sum, each) => sum + each, 0);
  return product < LEAST_PRODUCT * ground.length ? null : ground;
};

/** A canvas that is opaque where the product is; null where the image has no plain ground, or is from another site. */
export const productMask = (image) => {
  const scale = Math.min(1, EXAMINED / Math.max(image.naturalWidth, image.naturalHeight));
  const [width, height] = [image.naturalWidth, image.naturalHeight].map((side) => Math.max(1, Math.round(side * scale)));
  const canvas = element("canvas", { width, height });
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.fillStyle = "#fff"; // behind what is transparent, as on the page
  pen.fillRect(0, 0, width, height);
  pen.drawImage(image, 0, 0, width, height);
  let pixels;
  try {
    pixels = pen.getImageData(0, 0, width, height);
  } catch {
    return null; // browsers show images of other sites, but not their pixels
  }
  const ground = groundOf(pixels);
  if (!ground) return null;
  ground.forEach((isGround, at) => {
    pixels.data[4 * at + 3] = isGround ? 0 : 255;
  });
  pen.putImageData(pixels, 0, 0);
  return canvas;
};
