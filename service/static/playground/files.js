// Dropped and chosen files, and the listings that they make together.

import { readCsv } from "./csv.js";
import { plural } from "./dom.js";

const PICTURE = /\.(jpe?g|png|webp|gif|avif|bmp)$/i;
const TABLE = /\.(csv|tsv)$/i;
const COLUMNS = {
  id: ["id", "sku", "productid", "articleid", "asin"],
  title: ["title", "productdisplayname", "producttitle", "productname", "name"],
  image: ["image", "imageurl", "url", "imagefile", "file", "filename", "picture", "path", "link"],
};

export const isPicture = (file) => file.type.startsWith("image/") || PICTURE.test(file.name);
export const isTable = (file) => TABLE.test(file.name);

/** What was dropped or pasted, folders opened, as `{ file, path }`. */
export const droppedFiles = async (transfer) => {
  // Both must be asked for at once: the transfer is emptied as soon as its event has been handled.
  const items = [...transfer.items].filter(({ kind }) => kind === "file");
  const found = items.map((item) => ({ entry: item.webkitGetAsEntry?.(), file: item.getAsFile() }));
  const files = await Promise.all(found.map(({ entry, file }) => (entry ? inside(entry) : [{ file, path: file.name }])));
  return files.flat();
};

const inside = async (entry) => {
  const path = entry.fullPath.replace(/^\//, "");
  if (entry.isFile) return [{ file: await new Promise((resolve, reject) => entry.file(resolve, reject)), path }];
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    // A reader gives a hundred at a time, and none once there are no more.
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) break;
    found.push(...some);
  }
  return (await Promise.all(found.map(inside))).flat();
};

/** What an input was given, as `{ file, path }`. */
export const chosenFiles = (input) => [...input.files].map((file) => ({ file, path: file.webkitRelativePath || file.name }));

/**
 * Make listings of files: `{ listings, notes }`; a listing is `{ id, title, picture, address, error }`.
 *
 * `notes` say what was repaired or left out: nothing goes missing in silence.
 */
export const listingsOf = async (files) => {
  const pictures = files.filter(({ file }) => isPicture(file)).sort((one, other) => (one.path < other.path ? -1 : 1));
  const tables = files.filter(({ file }) => isTable(file));
  const rest = files.length - pictures.length - tables.length;
  const notes = [];
  if (rest) notes.push(`${plural(rest, "file")} left out: neither pictures nor CSV`);
  if (tables.length > 1) notes.push(`${plural(tables.length, "CSV file")} given: ${tables[0].path} is read, the others are not`);
  if (!tables.length) return { listings: pictures.map(({ file, path }) => blank({ id: path, picture: file })), notes };
  const table = readCsv(await tables[0].file.text());
  return { listings: join(table, pictures, notes), notes };
};

const blank = (given) => ({ id: "", title: "", picture: null, address: "", error: null, ...given });

const join = ({ header, rows, repaired }, pictures, notes) => {
  const plain = header.map((name) => name.toLowerCase().replace(/[^a-z]/g, ""));
  const column = Object.fromEntries(
    Object.entries(COLUMNS).map(([what, names]) => [what, names.map((name) => plain.indexOf(name)).find((at) => at >= 0) ?? -1]),
  );
  if (column.title < 0 && column.image < 0 && (column.id < 0 || !pictures.length)) {
    throw new Error(`The CSV has no column named title or image; it has ${header.join(", ").slice(0, 200) || "none at all"}.`);
  }
  if (repaired) notes.push(`${plural(repaired, "row")} repaired: unquoted commas in the last column`);
  const known = new Map();
  for (const { file, path } of pictures) {
    for (const name of [file.name.replace(/\.[^.]*$/, ""), file.name, path]) known.set(name, file);
  }
  const used = new Set();
  let missing = 0;
  const listings = rows.map((row, at) => {
    const cell = (what) => (column[what] < 0 ? "" : (row[column[what]] ?? "").trim());
    const id = cell("id") || `row ${at + 2}`;
    const named = cell("image");
    const listing = blank({ id, title: cell("title"), address: /^https?:\/\//i.test(named) ? named : "" });
    if (listing.address) return listing;
    listing.picture = known.get(named) ?? known.get(named.split("/").at(-1)) ?? (named ? null : known.get(id)) ?? null;
    used.add(listing.picture);
    if (named && !listing.picture) missing += 1;
    if (!listing.picture && !listing.title) listing.error = "there is neither a title nor a picture";
    return listing;
  });
  if (missing) notes.push(`${plural(missing, "row names", "rows name")} a picture that is not among the files: read by title alone`);
  const idle = pictures.filter(({ file }) => !used.has(file)).length;
  if (idle) notes.push(`${plural(idle, "picture")} left out: no row names them`);
  return listings;
};
