// Dropped and chosen files, and the listings that they contain.

import { plural } from "./dom.js";
import { readTable } from "./tables.js";

const IMAGE = /\.(jpe?g|png|webp|gif|avif|bmp)$/i;
const TABLE = /\.(csv|tsv|tab|jsonl|ndjson|json|xml|parquet|pq|xlsx|xlsm|xls)(\.gz)?$/i;
const FIRST = /\.(csv|tsv)(\.gz)?$/i; // where there are several tables
const NO_IMAGE = /^(nan|none|null|n\/a|-)$/i;
const EXTENSION = /\.[^.]*$/;
const COLUMNS = {
  id: ["id", "sku", "productid", "articleid", "asin"],
  title: ["title", "productdisplayname", "producttitle", "productname", "name"],
  image: ["image", "imageurl", "url", "imagefile", "file", "filename", "picture", "path", "link"],
};

const find = (columns) => (names) => {
  const normalised = names.map((name) => name.toLowerCase().replace(/[^a-z]/g, ""));
  return columns.map((name) => normalised.indexOf(name)).find((at) => at >= 0) ?? -1;
};

/** Finds the columns of a table by their names. */
export const WANTED = Object.fromEntries(Object.entries(COLUMNS).map(([what, names]) => [what, find(names)]));

export const isImage = (file) => file.type.startsWith("image/") || IMAGE.test(file.name);
export const isTable = (file) => TABLE.test(file.name);

/** The dropped or pasted files as `{ file, path }`, with the contents of folders. */
export const droppedFiles = async (transfer) => {
  // Both must be read before the first await: the transfer is emptied when the event handler returns.
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
    // A reader returns up to a hundred entries at a time, and an empty list at the end.
    const entries = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!entries.length) break;
    found.push(...entries);
  }
  return (await Promise.all(found.map(inside))).flat();
};

/** The files of a file input as `{ file, path }`. */
export const chosenFiles = (input) => [...input.files].map((file) => ({ file, path: file.webkitRelativePath || file.name }));

/**
 * Read listings from files: `{ listings, notes }`; a listing is `{ id, title, image, url, error }`.
 *
 * `allowMissing`: use the title alone where a row names an image that is not there. `notes` report everything that was
 * repaired or ignored.
 */
export const listingsOf = async (files, { allowMissing = false } = {}) => {
  const images = files.filter(({ file }) => isImage(file)).sort((one, other) => (one.path < other.path ? -1 : 1));
  const tables = files.filter(({ file }) => isTable(file));
  const rest = files.length - images.length - tables.length;
  const notes = [];
  if (rest) notes.push(`${plural(rest, "file")} ignored: not an image or a table`);
  const table = tables.find(({ file }) => FIRST.test(file.name)) ?? tables[0];
  if (tables.length > 1) notes.push(`${plural(tables.length, "table")} found: only ${table.path} is used`);
  if (!table) return { listings: images.map(({ file, path }) => blank({ id: path, image: file })), notes };
  const read = await readTable(table.file, WANTED);
  notes.push(`${table.path}: ${read.form}`);
  return { listings: join(read, finder(images, parts(table.path).slice(0, -1)), notes, allowMissing), notes };
};

// ── matching images to rows ────────────────────────────────────────────────────────────────────────────────

const parts = (path) => path.split(/[\\/]+/).filter((part) => part && part !== ".");
const stem = (path) => path.replace(EXTENSION, "");

/** Append `value` to the list that `map` holds under `key`. */
const add = (map, key, value) => map.get(key)?.push(value) ?? map.set(key, [value]);

/** How many parts two paths have in common at their ends. */
const commonParts = (one, other) => {
  let count = 0;
  while (count < Math.min(one.length, other.length) && one.at(-1 - count) === other.at(-1 - count)) count += 1;
  return count;
};

/**
 * Find the images for a table in `folder`: `{ images, byPath(cells), byId(id) }`.
 *
 * A wrong image is worse than none: an ambiguous name matches no image.
 */
const finder = (images, folder) => {
  const names = new Map();
  const stems = new Map();
  const paths = new Map();
  for (const { file, path } of images) {
    const found = { file, at: parts(path) };
    paths.set(found.at.join("/"), file);
    add(names, found.at.at(-1), found);
    // A cell may omit the file extension.
    add(stems, stem(found.at.at(-1)), { file, at: [...found.at.slice(0, -1), stem(found.at.at(-1))] });
  }
  const byId = (id) => {
    const found = stems.get(id) ?? names.get(id) ?? [];
    return { image: found.length === 1 ? found[0].file : null, ambiguous: found.length > 1 };
  };
  return { images, byId, byPath: (cells) => pathFinder({ names, stems, paths }, folder, cells) };
};

/**
 * Return a function that finds the image for a cell; `cells`: all cells of the column.
 *
 * A path relative to the folder of the table is unambiguous. Otherwise the paths in the table have a different root, and the
 * image is the one whose path has the most parts in common with the end of the cell, unless another cell has the same
 * ending and might refer to that image.
 */
const pathFinder = ({ names, stems, paths }, folder, cells) => {
  const endings = new Map();
  for (const cell of new Set(cells.map((each) => parts(each).join("/")))) {
    const at = cell.split("/");
    for (let first = 0; first < at.length; first += 1) add(endings, at.slice(first).join("/"), cell);
  }
  return (cell) => {
    const wanted = parts(cell);
    const exact = paths.get([...folder, ...wanted].join("/"));
    if (exact) return exact;
    const candidates = names.get(wanted.at(-1)) ?? stems.get(wanted.at(-1)) ?? [];
    const most = Math.max(0, ...candidates.map(({ at }) => commonParts(at, wanted)));
    const found = candidates.filter(({ at }) => commonParts(at, wanted) === most);
    const unique = most === wanted.length || endings.get(wanted.slice(-most).join("/"))?.length === 1;
    return found.length === 1 && unique ? found[0].file : null;
  };
};

// ── rows ───────────────────────────────────────────────────────────────────────────────────────────────────

const blank = (given) => ({ id: "", title: "", image: null, url: "", error: null, ...given });

/** The first image that a cell names. */
const firstImage = (cell) => {
  if (NO_IMAGE.test(cell)) return "";
  if (!cell.startsWith("[")) return /^data:/i.test(cell) ? cell : cell.split("|")[0].trim();
  try {
    return String(JSON.parse(cell)[0] ?? "");
  } catch {
    return cell;
  }
};

/** Which columns of the table mean what, and which were not understood. */
const columnNotes = (header, columns) => {
  const used = Object.entries(columns).filter(([, at]) => at >= 0);
  const taken = new Set(used.map(([, at]) => at));
  const rest = header.filter((name, at) => name && !taken.has(at));
  const notes = [`Columns used: ${used.map(([what, at]) => (header[at] === what ? what : `${header[at]} as ${what}`)).join(", ")}`];
  if (rest.length) notes.push(`${plural(rest.length, "column")} not used: ${shortened(rest.join(", "))}`);
  return notes;
};

const shortened = (text) => (text.length > 200 ? `${text.slice(0, 200)}…` : text);

/**
 * Find each row's image, as `cma-clip label` does: an image that is named and not there is an error of its row, and where
 * not one is there, of the table; an id that names no image is none.
 */
const join = ({ header, columns, rows }, { images, byId, byPath }, notes, allowMissing) => {
  if (columns.title < 0 && columns.image < 0 && (columns.id < 0 || !images.length)) {
    const named = shortened(header.filter(Boolean).join(", "));
    throw new Error(`The table has no column named title or image; it has ${named || "none"}.`);
  }
  notes.push(...columnNotes(header, columns));
  const repaired = rows.filter((row) => row.repaired).length;
  if (repaired) notes.push(`${plural(repaired, "row")} repaired: unquoted commas in the last column, or a stray quote`);
  const imageAt = byPath(rows.map((row) => firstImage(row.image)).filter(Boolean));
  const used = new Set();
  const missing = [];
  let found = 0;
  let several = 0;
  const listings = rows.map((row) => {
    const id = row.id || `line ${row.line}`;
    const named = firstImage(row.image);
    const listing = blank({ id, title: row.title, url: /^(https?:\/\/|data:)/i.test(named) ? named : "" });
    if (row.error) listing.error = `line ${row.line}: ${row.error}`;
    if (listing.url || listing.error) return listing;
    const { image, ambiguous } = named ? { image: imageAt(named), ambiguous: false } : byId(id);
    listing.image = image;
    used.add(image);
    if (named && image) found += 1;
    if (named && !image) {
      missing.push(named);
      if (!allowMissing) listing.error = `line ${row.line}: the image is not among the files, or matches several of them: ${named}`;
    }
    if (ambiguous) several += 1;
    if (!listing.image && !listing.title) listing.error ??= "the row has neither a title nor an image";
    return listing;
  });
  if (missing.length && !found && !allowMissing && !listings.some(({ url }) => url)) {
    throw new Error(`None of the images that the table names is among the files, such as ${missing[0]}. Choose the images too, or tick “Use the title alone where an image is missing”.`);
  }
  if (missing.length) {
    const instead = allowMissing ? "only the title is used" : "these rows fail";
    notes.push(`${plural(missing.length, "row names", "rows name")} an image that is missing or ambiguous: ${instead}`);
  }
  if (several) notes.push(`${plural(several, "row has an id", "rows have ids")} that ${several === 1 ? "matches" : "match"} several images: only the title is used`);
  const unused = images.filter(({ file }) => !used.has(file)).length;
  if (unused) notes.push(`${plural(unused, "image")} ignored: not used by any row`);
  return listings;
};
