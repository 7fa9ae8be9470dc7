// Writes CSV.

const FORMULA = /^'*[=+\-@\t\r\n＝＋－＠]/;
const NUMBER = /^[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?$/;

/** A cell that no spreadsheet runs as a formula: with an apostrophe before it where it would. */
const safe = (text) => (FORMULA.test(text) && !NUMBER.test(text) ? `'${text}` : text);

const quoted = (value) => {
  const text = safe(String(value ?? ""));
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
};

export const writeCsv = (rows) => rows.map((row) => `${row.map(quoted).join(",")}\r\n`).join("");
