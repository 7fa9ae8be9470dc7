// Reads CSV of any separator by the rules of `model/catalogue/csv_table.py`, with the whole text in memory: quoted cells of any
// length, rows repaired only where that is certain, and no text that becomes a row of its own. The tests run the same tables
// through both.

const SEPARATORS = [",", ";", "\t", "|"];
const HEAD = 2 ** 16; // characters in which the header is looked for
const MAX_RECORD = 2 ** 24; // characters of a record; a quote that stays open longer is a stray one
const LOOK_AHEAD = 2000; // records that are read before the first one is judged
const LEARNED = 100_000;
const MAX_VALUES = 10_000;
const CHECKED_LINES = 20; // lines after a stray quote that must be rows before it is taken literally
const HINT = /^"?sep=(.)"?[^\p{L}\p{N}_]*$/isu;

const FORMULA = /^'+[=+\-@\t\r\n＝＋－＠]/;

/** The text that a cell stands for: without the apostrophe that keeps spreadsheets from running it. */
const fromCell = (cell) => (FORMULA.test(cell) ? cell.slice(1) : cell);

export const plainName = (name) => name.replace(/[\uFEFF\u200B]/g, "").split(/\s+/).filter(Boolean).join(" ");

/** Lines with their ends. */
export const linesOf = (text) => text.match(/[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+$/g) ?? [];

/** Read the record that begins in `lines[start]`: `{ cells, end }`; `{ malformed, end }` where its quotes are wrong and `strict`. */
const readRecord = (lines, start, delimiter, strict) => {
  const cells = [];
  let cell = "";
  let state = "start"; // of a cell; "text", "quoted", or "closed" after the second quote
  let size = 0;
  for (let at = start; at < lines.length; at += 1) {
    size += lines[at].length;
    if (size > MAX_RECORD) return { malformed: true, end: at + 1 };
    for (const character of lines[at]) {
      if (state === "quoted") {
        if (character === '"') state = "closed";
        else cell += character;
      } else if (character === '"' && state === "start") state = "quoted";
      else if (character === '"' && state === "closed") {
        cell += character;
        state = "quoted";
      } else if (character === delimiter) {
        cells.push(cell);
        [cell, state] = ["", "start"];
      } else if (character === "\n" || character === "\r") {
        cells.push(cell);
        return { cells, end: at + 1 };
      } else if (state === "closed" && strict) return { malformed: true, end: at + 1 };
      else {
        cell += character;
        state = "text";
      }
    }
  }
  if (state === "quoted" && strict) return { malformed: true, end: lines.length };
  return { cells: [...cells, cell], end: lines.length };
};

/** The cells of a line by itself; null where a quote is open at its end. */
const oneLine = (line, delimiter) => (line.split('"').length % 2 ? readRecord([line], 0, delimiter, false).cells : null);

const kinds = (text) => new Set([...text].map((each) => (/\p{L}/u.test(each) ? "a" : /\p{Nd}/u.test(each) ? "9" : each)));
const isWithin = (some, all) => [...some].every((each) => all.has(each));

/** What the columns hold in rows that are as wide as the header. */
class SoundRows {
  constructor(width, id) {
    this.id = id;
    this.count = 0;
    this.values = Array.from({ length: width - 1 }, () => new Set());
    this.kinds = Array.from({ length: width }, () => new Set());
    this.spaced = false;
  }

  learn(cells) {
    if (this.count === LEARNED) return;
    this.count += 1;
    this.spaced ||= cells.some((cell) => cell.startsWith(" "));
    cells.forEach((cell, at) => {
      const values = this.values[at];
      if (at === this.id || values === null || (values && !values.has(cell))) {
        for (const kind of kinds(cell)) this.kinds[at].add(kind);
      }
      if (values && at !== this.id && values.add(cell).size > MAX_VALUES) this.values[at] = null;
    });
  }

  /** Whether all cells but the last are what their columns hold, so that nothing has been shifted. */
  fits(cells) {
    if (!this.spaced && cells.some((cell) => cell.startsWith(" "))) return false;
    return !this.count || cells.slice(0, -1).every((cell, at) => this.isKnown(at, cell));
  }

  isKnown(at, cell) {
    if (at !== this.id && this.values[at]?.has(cell)) return true;
    const found = kinds(cell);
    return (at === this.id || found.has("9")) && !found.has(" ") && isWithin(found, this.kinds[at]);
  }

  /** Whether the cell is made of the kinds of characters that ids are made of; without a column of ids, any is. */
  hasId(cell, otherwise) {
    if (this.id < 0) return true;
    const known = this.kinds[this.id].size ? this.kinds[this.id] : kinds(otherwise ?? "");
    const found = kinds(cell ?? "");
    return found.size > 0 && isWithin(found, known);
  }
}

class Parser {
  constructor(lines, start, width, delimiter, { id, title }) {
    Object.assign(this, { lines, at: start, width, delimiter, id, endsInTitle: title === width - 1 });
    this.sound = new SoundRows(width, id);
    this.lost = null; // the last record where its end was not found: what follows may be text of its own
  }

  /** All records: `{ line, cells, error, repaired }`. The first ones are judged by what all of them hold. */
  records() {
    const found = [];
    let judged = 0;
    for (let each = this.next(); each; each = this.next()) {
      if (!each.error && each.cells.length === this.width) this.sound.learn(each.cells);
      if (found.push(each) < LOOK_AHEAD) continue;
      for (; judged < found.length; judged += 1) found[judged] = this.judged(found[judged]);
    }
    return found.map((record, at) => (at < judged ? record : this.judged(record)));
  }

  judged({ line, cells, error, repaired }) {
    if (error || cells.length === this.width) return { line, cells, error, repaired: repaired && !error };
    if (cells.length < this.width) return { line, cells, error: "too few fields", repaired: false };
    const last = this.width - 1;
    if (!this.endsInTitle || !this.sound.fits(cells.slice(0, this.width))) return { line, cells, error: "too many fields", repaired: false };
    return { line, cells: [...cells.slice(0, last), cells.slice(last).join(this.delimiter)], error: null, repaired: true };
  }

  next() {
    while (this.at < this.lines.length) {
      const start = this.at;
      const { cells, end, error = null, repaired = false } = this.read(start);
      this.at = end;
      if (end === start + 1 && !this.lines[start].trim()) continue;
      if (this.lost && !this.isRow(cells, this.lost)) {
        this.at = start + 1;
        continue;
      }
      this.lost = error ? cells : null;
      return { line: start + 1, cells, error, repaired };
    }
    return null;
  }

  read(start) {
    const found = readRecord(this.lines, start, this.delimiter, true);
    return found.malformed ? this.malformed(start, found.end) : found;
  }

  /** A record with wrong quotes, and where the next one begins. */
  malformed(start, taken) {
    const first = this.lines[start];
    const whole = oneLine(first, this.delimiter);
    if (whole) return { cells: whole, end: start + 1 }; // quotes inside a cell that closes on its line
    const cells = first.replace(/[\r\n]+$/, "").split(this.delimiter);
    const end = Math.min(this.lines.length, Math.max(taken, start + 1 + CHECKED_LINES));
    const following = this.lines.slice(start + 1, start + 1 + CHECKED_LINES).filter((line) => line.trim());
    if (cells.length === this.width && following.every((line) => this.beginsRow(line, cells))) return { cells, end: start + 1, repaired: true };
    let next = start + 1;
    while (next < end && !this.beginsRow(this.lines[next], cells)) next += 1;
    return { cells, end: next, error: "a quote is never closed" };
  }

  beginsRow(line, before) {
    const cells = oneLine(line, this.delimiter);
    return cells ? this.isRow(cells, before) : this.sound.hasId(line.split(this.delimiter)[this.id], before[this.id]);
  }

  isRow(cells, before) {
    return cells.length === this.width && this.sound.hasId(cells[this.id], before[this.id]);
  }
}

const firstRecord = (lines, delimiter) => {
  for (let at = 0; at < lines.length; ) {
    const { cells = [], end } = readRecord(lines, at, delimiter, false);
    if (cells.some(Boolean)) return cells;
    at = end;
  }
  return [];
};

/** The separator that makes most of the columns wanted, and then most cells. */
const separatorOf = (head, columnsOf) => {
  const own = [...(head[0] ?? "")].filter((each) => !/[\p{L}\p{N} "'_\-.\r\n\uFEFF]/u.test(each));
  const rank = (separator) => {
    const cells = firstRecord(head, separator);
    return Object.values(columnsOf(cells)).filter((at) => at >= 0).length * 1e6 + cells.length;
  };
  return [...SEPARATORS, ...own].reduce((best, other) => (rank(other) > rank(best) ? other : best));
};

/**
 * Read CSV: `{ delimiter, header, columns, records }`; a record is `{ line, cells, error, repaired }`.
 *
 * `columnsOf(header)`: the positions of the columns that are wanted, by what they are for; -1: missing.
 */
export const readCsv = (text, columnsOf) => {
  const lines = linesOf(text);
  let skipped = Math.max(0, lines.findIndex((line) => line.replace(/\uFEFF/g, "").trim()));
  const hint = HINT.exec((lines[skipped] ?? "").replace(/^[\uFEFF\r\n]+|[\uFEFF\r\n]+$/g, ""));
  if (hint) skipped += 1;
  const head = [];
  for (let at = skipped, size = 0; at < lines.length && size < HEAD; at += 1) {
    head.push(lines[at]);
    size += lines[at].length;
  }
  const delimiter = hint?.[1] ?? separatorOf(head, columnsOf);
  const { cells, end } = lines.length > skipped ? readRecord(lines, skipped, delimiter, false) : { cells: [], end: skipped };
  const header = (cells ?? []).map((cell) => fromCell(cell.replace(/^\uFEFF+|\uFEFF+$/g, "")));
  const columns = columnsOf(header);
  const records = new Parser(lines, end, header.length, delimiter, columns).records();
  return { delimiter, header, columns, records: records.map((record) => ({ ...record, cells: record.cells.map(fromCell) })) };
};
