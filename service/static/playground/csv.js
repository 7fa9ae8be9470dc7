// Reads CSV with commas, semicolons or tabs, quoted or not, and writes CSV.

/** Split text into rows of cells (RFC 4180): a delimiter inside quotes is text, two quotes stand for one. */
const cells = (text, delimiter) => {
  const rows = [];
  let row = [];
  let cell = "";
  let quoted = false;
  for (let at = 0; at < text.length; at += 1) {
    const character = text[at];
    if (quoted) {
      if (character !== '"') cell += character;
      else if (text[at + 1] === '"') cell += text[(at += 1)];
      else quoted = false;
    } else if (character === '"' && cell === "") quoted = true;
    else if (character === delimiter || character === "\n") {
      row.push(cell);
      cell = "";
      if (character === "\n") {
        rows.push(row);
        row = [];
      }
    } else if (character !== "\r" || text[at + 1] !== "\n") cell += character;
  }
  if (cell || row.length) rows.push([...row, cell]);
  return rows.filter((found) => found.length > 1 || found[0].trim());
};

/**
 * Read a table: `{ header, rows, repaired }`.
 *
 * A row with too many cells has unquoted delimiters in its last column, like the titles of the public fashion table: the
 * extra cells are joined to the last column again, and the row is counted as repaired.
 */
export const readCsv = (text) => {
  const [firstLine] = text.split("\n", 1);
  const count = (delimiter) => firstLine.split(delimiter).length;
  const delimiter = [",", ";", "\t"].reduce((best, other) => (count(other) > count(best) ? other : best));
  const [header = [], ...body] = cells(text.replace(/^\uFEFF/, ""), delimiter);
  let repaired = 0;
  const rows = body.map((row) => {
    if (row.length <= header.length) return row;
    repaired += 1;
    return [...row.slice(0, header.length - 1), row.slice(header.length - 1).join(delimiter)];
  });
  return { header: header.map((name) => name.trim()), rows, repaired };
};

const quoted = (value) => {
  const text = String(value ?? "");
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
};

export const writeCsv = (rows) => rows.map((row) => `${row.map(quoted).join(",")}\r\n`).join("");
