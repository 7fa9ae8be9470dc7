// Dropped and chosen files, and the listings that they make together.

import { readCsv } from "./csv.js";
import { plural } from "./dom.js";

const PICTURE = /\.(jpe?g|png|webp|gif|avif|bmp)$/i;
const TABLE = /\.(csv|tsv)$/i;
const ENDING = /\.[^.]*$/;
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
  const table = readCsv(await textOf(tables[0].file, notes));
  return { listings: join(table, finder(pictures, pieces(tables[0].path).slice(0, -1)), notes), notes };
};

/** The text of a table, which an office program may have written in the encoding of its own country. */
const textOf = async (file, notes) => {
  const bytes = await file.arrayBuffer();
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    notes.push("the CSV is not UTF-8: read as Windows-1252");
    return new TextDecoder("windows-1252").decode(bytes);
  }
};

// ── which picture a row means ──────────────────────────────────────────────────────────────────────────────

const pieces = (path) => path.split(/[\\/]+/).filter((piece) => piece && piece !== ".");
const bare = (path) => path.replace(ENDING, "");

/** Put `value` beside the others that `map` has under `key`. */
const add = (map, key, value) => map.get(key)?.push(value) ?? map.set(key, [value]);

/** How many pieces two paths end with alike. */
const alike = (one, other) => {
  let count = 0;
  while (count < Math.min(one.length, other.length) && one.at(-1 - count) === other.at(-1 - count)) count += 1;
  return count;
};

/**
 * Find pictures for a table that lies in `folder`: `{ pictures, byPath(cells), byId(id) }`.
 *
 * A wrong picture is worse than none: where several could be meant, none is.
 */
const finder = (pictures, folder) => {
  const names = new Map();
  const stems = new Map();
  const paths = new Map();
  for (const { file, path } of pictures) {
    const found = { file, at: pieces(path) };
    paths.set(found.at.join("/"), file);
    add(names, found.at.at(-1), found);
    // A cell may leave the ending out.
    add(stems, bare(found.at.at(-1)), { file, at: [...found.at.slice(0, -1), bare(found.at.at(-1))] });
  }
  const byId = (id) => {
    const found = stems.get(id) ?? names.get(id) ?? [];
    return { picture: found.length === 1 ? found[0].file : null, unclear: found.length > 1 };
  };
  return { pictures, byId, byPath: (cells) => pathFinder({ names, stems, paths }, folder, cells) };
};

/**
 * Return what finds the picture of a cell, among `cells`.
 *
 * A path from the table's own folder is what it says. Else table and pictures do not begin at the same place, and the
 * picture is meant that ends most like the cell, unless another cell ends so too: that one may mean it.
 */
const pathFinder = ({ names, stems, paths }, folder, cells) => {
  const endings = new Map();
  for (const cell of new Set(cells.map((each) => pieces(each).join("/")))) {
    const at = cell.split("/");
    for (let first = 0; first < at.length; first += 1) add(endings, at.slice(first).join("/"), cell);
  }
  return (cell) => {
    const wanted = pieces(cell);
    const there = paths.get([...folder, ...wanted].join("/"));
    if (there) return there;
    const candidates = names.get(wanted.at(-1)) ?? stems.get(wanted.at(-1)) ?? [];
    const most = Math.max(0, ...candidates.map(({ at }) => alike(at, wanted)));
    const found = candidates.filter(({ at }) => alike(at, wanted) === most);
    const alone = most === wanted.length || endings.get(wanted.slice(-most).join("/"))?.length === 1;
    return found.length === 1 && alone ? found[0].file : null;
  };
};

// ── rows ───────────────────────────────────────────────────────────────────────────────────────────────────

const blank = (given) => ({ id: "", title: "", picture: null, address: "", error: null, ...given });

const join = ({ header, rows, repaired }, { pictures, byId, byPath }, notes) => {
  const plain = header.map((name) => name.toLowerCase().replace(/[^a-z]/g, ""));
  const column = Object.fromEntries(
    Object.entries(COLUMNS).map(([what, names]) => [what, names.map((name) => plain.indexOf(name)).find((at) => at >= 0) ?? -1]),
  );
  if (column.title < 0 && column.image < 0 && (column.id < 0 || !pictures.length)) {
    throw new Error(`The CSV has no column named title or image; it has ${header.join(", ").slice(0, 200) || "none at all"}.`);
  }
  if (repaired) notes.push(`${plural(repaired, "row")} repaired: unquoted commas in the last column`);
  const value = (row, what) => (column[what] < 0 ? "" : (row[column[what]] ?? "").trim());
  const pictureAt = byPath(rows.map((row) => value(row, "image")).filter(Boolean));
  const used = new Set();
  let missing = 0;
  let several = 0;
  const listings = rows.map((row, at) => {
    const cell = (what) => value(row, what);
    const id = cell("id") || `row ${at + 2}`;
    const named = cell("image");
    const listing = blank({ id, title: cell("title"), address: /^https?:\/\//i.test(named) ? named : "" });
    if (listing.address) return listing;
    const { picture, unclear } = named ? { picture: pictureAt(named), unclear: false } : byId(id);
    listing.picture = picture;
    used.add(picture);
    if (named && !picture) missing += 1;
    if (unclear) several += 1;
    if (!listing.picture && !listing.title) listing.error = "there is neither a title nor a picture";
    return listing;
  });
  if (missing) notes.push(`${plural(missing, "row names", "rows name")} a picture that is not, or not clearly, among the files: read by title alone`);
  if (several) notes.push(`${plural(several, "row has", "rows have")} several pictures of its id's name: read by title alone`);
  const idle = pictures.filter(({ file }) => !used.has(file)).length;
  if (idle) notes.push(`${plural(idle, "picture")} left out: no row names them`);
  return listings;
};
