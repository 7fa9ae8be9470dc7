// Reads tables as `model/catalogue/tables.py` does: CSV of any separator and JSON, in the usual encodings, gzip or not. What
// a browser cannot read is refused with what to do. The tests run the same tables through both.

import { linesOf, plainName, readCsv } from "./csv_table.js";

const COLUMN_SAMPLE = 1000; // JSON has no header: the columns are the keys of this many first objects
const SEPARATORS = { ",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars" };
const MARKS = [
  [[0xef, 0xbb, 0xbf], "utf-8", "UTF-8"],
  [[0xff, 0xfe], "utf-16le", "UTF-16"],
  [[0xfe, 0xff], "utf-16be", "UTF-16"],
];
const JSON_NAME = /\.(jsonl|ndjson|json)$/i;

const startsWith = (bytes, start) => start.every((byte, at) => bytes[at] === byte);
const ascii = (text) => [...text].map((character) => character.charCodeAt(0));

// ── bytes ──────────────────────────────────────────────────────────────────────────────────────────────────

const unpacked = async (bytes) => {
  if (!startsWith(bytes, [0x1f, 0x8b])) return bytes;
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  try {
    return new Uint8Array(await new Response(stream).arrayBuffer());
  } catch {
    throw new Error("The table is a gzip file that is damaged.");
  }
};

/** Refuse what needs a library, with what to do. */
const refuse = (bytes) => {
  const instead = "Save it as CSV, or label it with cma-clip label, which reads it.";
  if (startsWith(bytes, ascii("PAR1"))) throw new Error(`The table is a Parquet file, which this page cannot read. ${instead}`);
  if (startsWith(bytes, [...ascii("PK"), 3, 4])) throw new Error(`The table is an Excel workbook, which this page cannot read. ${instead}`);
  if (startsWith(bytes, [0xd0, 0xcf, 0x11, 0xe0])) throw new Error("The table is an Excel workbook of the old kind (.xls). Save it as CSV.");
  const start = new TextDecoder("latin1").decode(bytes.subarray(0, 4096)).replace(/\0/g, "").replace(/^[\xEF\xBB\xBF\xFF\xFE \t\r\n]+/, "");
  if (/^(<html|<!doctype html)/i.test(start)) throw new Error("The table is a web page.");
  if (start.startsWith("<")) throw new Error(`The table is an XML feed, which this page cannot read. ${instead}`);
  return /^(\{"|\[\{|\[\n|\[\r)/.test(start);
};

/** The text of a file, and the name of its encoding. */
const textOf = (bytes) => {
  if (startsWith(bytes, [0xff, 0xfe, 0, 0]) || startsWith(bytes, [0, 0, 0xfe, 0xff])) throw new Error("The table is in UTF-32. Save it as UTF-8.");
  for (const [mark, label, name] of MARKS) if (startsWith(bytes, mark)) return [new TextDecoder(label).decode(bytes), name];
  const head = bytes.subarray(0, 2 ** 18);
  const zeros = head.filter((byte) => byte === 0).length;
  if (zeros > head.length / 4) {
    const little = head.filter((byte, at) => at % 2 && byte === 0).length * 2 > zeros;
    return [new TextDecoder(little ? "utf-16le" : "utf-16be").decode(bytes), little ? "UTF-16-LE" : "UTF-16-BE"];
  }
  const text = new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes);
  // Each byte that is not UTF-8 has become a U+FFFD; a few bad ones in a UTF-8 file cost their rows alone.
  const runs = (text.match(/\uFFFD+/g) ?? []).map((run) => run.length);
  const invalid = runs.reduce((sum, run) => sum + run, 0);
  if (invalid <= (text.match(/[^\0-\x7F\uFFFD]/gu) ?? []).length) return [text, "UTF-8"];
  const clustered = runs.filter((run) => run > 2).reduce((sum, run) => sum + run, 0);
  if (clustered * 2 > invalid) throw new Error("The encoding of the table is not recognised: it is not UTF-8, and makes no sense as Windows-1252. Save it as UTF-8.");
  return [new TextDecoder("windows-1252").decode(bytes), "Windows-1252"];
};

// ── JSON ───────────────────────────────────────────────────────────────────────────────────────────────────

const NONE = Symbol("no JSON");

const parsed = (text) => {
  try {
    return JSON.parse(text);
  } catch {
    return NONE;
  }
};

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

/** Where the JSON value that begins at `at` ends; -1 where it doesn't. */
const endOf = (text, at) => {
  const token = /"(?:[^"\\]|\\.)*"|[[\]{}]/gsy;
  let depth = 0;
  for (let here = at; here < text.length; ) {
    token.lastIndex = here;
    const found = token.exec(text);
    if (!found) {
      if (!depth && /[\s,\]]/.test(text[here])) return here;
      here += 1;
      continue;
    }
    here = token.lastIndex;
    if (/[[{]/.test(found[0])) depth += 1;
    if (/[\]}]/.test(found[0])) depth -= 1;
    if (!depth) return here;
  }
  return depth ? -1 : text.length;
};

/** The values from `at` on, with the lines that they begin in; `list`: up to the end of the list. */
const valuesOf = (text, start, list) => {
  const found = [];
  let line = 1 + text.slice(0, start).split("\n").length - 1;
  for (let at = start; ; ) {
    const between = /^[ \t\r\n,\uFEFF]*/.exec(text.slice(at, at + 4096))[0];
    line += between.split("\n").length - 1;
    at += between.length;
    if (between.length === 4096) continue;
    if (list ? text[at] === "]" : at >= text.length) return found;
    const end = endOf(text, at);
    const value = end < 0 ? NONE : parsed(text.slice(at, end));
    if (value === NONE) throw new Error(`The table is not valid JSON at line ${line}.`);
    found.push({ line, value });
    line += text.slice(at, end).split("\n").length - 1;
    at = end;
  }
};

/** Where the list of objects begins: at once, or as the value of a key of an object that is no row; -1: nowhere. */
const listStart = (text, isWanted) => {
  const start = text.search(/[^\uFEFF \t\r\n]/);
  if (text[start] === "[") return start;
  if (text[start] !== "{") return -1;
  const key = /\s*,?\s*("(?:[^"\\]|\\.)*")\s*:\s*/y;
  for (let at = start + 1; ; ) {
    key.lastIndex = at;
    const found = key.exec(text);
    if (!found || isWanted(JSON.parse(found[1]))) return -1;
    at = key.lastIndex;
    if (/^\[\s*\{/.test(text.slice(at, at + 4096))) return at;
    at = endOf(text, at);
    if (at < 0) return -1;
  }
};

const readJson = (text, columnsOf) => {
  const isWanted = (name) => Object.values(columnsOf([name])).some((at) => at >= 0);
  const lines = linesOf(text);
  const first = lines.findIndex((line) => line.replace(/\uFEFF/g, "").trim());
  const isLines = parsed((lines[first] ?? "").replace(/^\uFEFF/, "")) !== NONE && lines.slice(first + 1).some((line) => line.trim());
  const start = listStart(text, isWanted);
  let form = "JSON Lines";
  let numbered;
  if (!isLines && start >= 0) [form, numbered] = ["a JSON list", valuesOf(text, start + 1, true)];
  else if (!isLines && endOf(text, Math.max(0, text.search(/[^\uFEFF \t\r\n]/))) >= 0) [form, numbered] = ["JSON objects", valuesOf(text, 0, false)];
  else {
    numbered = lines.map((line, at) => ({ line: at + 1, value: line.replace(/\uFEFF/g, "").trim() }));
    numbered = numbered.filter(({ value }) => value).map(({ line, value }) => ({ line, value: parsed(value) }));
  }
  const sample = numbered.slice(0, COLUMN_SAMPLE).filter(({ value }) => isObject(value));
  const header = [...new Set(sample.flatMap(({ value }) => Object.keys(value)))];
  const records = numbered.map(({ line, value }) => ({
    line,
    cells: isObject(value) ? header.map((name) => value[name]) : [],
    error: isObject(value) ? null : "not a JSON object",
    repaired: false,
  }));
  return { form, header, columns: columnsOf(header), records };
};

// ── rows ───────────────────────────────────────────────────────────────────────────────────────────────────

const KINDS = { object: "dict", array: "list" };

/** A cell as text. Throws for what is none. */
const asText = (value) => {
  if (value === null || value === undefined) return "";
  if (typeof value === "object") throw new Error(`holds a ${KINDS[Array.isArray(value) ? "array" : "object"]}`);
  const text = String(value).trim();
  if (text.includes("\uFFFD")) throw new Error("is not valid UTF-8");
  return text;
};

/** What a cell says of an image: a name, or several as a JSON list. */
const imageText = (value) => {
  if (Array.isArray(value)) {
    const names = value.map(imageText).filter(Boolean);
    return names.length > 1 ? JSON.stringify(names) : names.join("");
  }
  return asText(isObject(value) ? (value.path ?? value.url ?? (value.bytes === null ? null : value)) : value);
};

const rowOf = ({ line, cells, error, repaired }, header, columns) => {
  const row = { line, error, repaired };
  for (const [what, at] of Object.entries(columns)) {
    try {
      row[what] = at < 0 ? "" : (what === "image" ? imageText : asText)(cells[at]);
    } catch (problem) {
      row[what] = "";
      row.error ??= `column '${header[at]}' ${problem.message}`;
    }
  }
  return { ...row, repaired: repaired && !row.error };
};

/**
 * Read a table: `{ form, header, columns, rows }`; a row is `{ line, id, title, image, error, repaired }`.
 *
 * `wanted`: for each of id, title and image a function that finds its name among others: the position, or -1.
 */
export const readTable = async (file, wanted) => {
  const bytes = await unpacked(new Uint8Array(await file.arrayBuffer()));
  const looksLikeJson = refuse(bytes);
  const [text, encoding] = textOf(bytes);
  const columnsOf = (header) => {
    const names = header.map(plainName);
    return Object.fromEntries(Object.entries(wanted).map(([what, find]) => [what, find(names)]));
  };
  const json = looksLikeJson || JSON_NAME.test(file.name.replace(/\.gz$/i, ""));
  const table = (json ? readJson : readCsv)(text, columnsOf);
  const header = table.header.map(plainName);
  for (const at of Object.values(table.columns)) {
    if (at >= 0 && header.indexOf(header[at]) !== header.lastIndexOf(header[at])) throw new Error(`The table has two columns called ${header[at]}.`);
  }
  const form = json ? `${table.form} in ${encoding}` : `CSV with ${SEPARATORS[table.delimiter] ?? `'${table.delimiter}'`}, in ${encoding}`;
  return { form, header, columns: table.columns, rows: table.records.map((record) => rowOf(record, header, table.columns)) };
};
