// The request of the page as code for curl and Python.

const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;

const python = (value) => {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(python).join(", ")}]`;
  if (typeof value === "object") {
    return `{${Object.entries(value).map(([name, inner]) => `${JSON.stringify(name)}: ${python(inner)}`).join(", ")}}`;
  }
  return JSON.stringify(value); // JSON strings and numbers are valid Python
};

/**
 * The curl command for a POST request: `path`, and either `json`, or form `fields` with the name of an image `file`.
 *
 * It never contains the API key; `keyed` makes it read the key from the environment variable CMA_CLIP_KEY.
 */
export const curl = ({ path, json, fields, file }, origin, keyed) => {
  const lines = [`curl ${shell(new URL(path, origin).href)}`];
  if (keyed) lines.push('-H "Authorization: Bearer $CMA_CLIP_KEY"');
  if (json) {
    lines.push("-H 'Content-Type: application/json'", `--data-raw ${shell(JSON.stringify(json))}`);
  } else {
    // -F gives some characters of a file name a meaning; --form-string takes text literally, even if it starts with @.
    lines.push(`-F ${shell(`image=@"${file.replace(/["\\]/g, "\\$&")}"`)}`);
    for (const [name, value] of Object.entries(fields)) lines.push(`--form-string ${shell(`${name}=${value}`)}`);
  }
  return `${lines.join(" \\\n  ")}\n`;
};

export const pythonCode = ({ path, json, fields, file }, origin, keyed) => {
  const headers = keyed ? '    headers={"Authorization": f"Bearer {os.environ[\'CMA_CLIP_KEY\']}"},\n' : "";
  const body = json
    ? `    json=${python(json)},\n`
    : `    files={"image": Path(${python(file)}).read_bytes()},\n    data=${python(fields)},\n`;
  const imports = [keyed && "import os", !json && "from pathlib import Path"].filter(Boolean);
  return (
    `${imports.map((line) => `${line}\n`).join("")}${imports.length ? "\n" : ""}import httpx\n\n` +
    `response = httpx.post(\n    ${python(new URL(path, origin).href)},\n${headers}${body})\n` +
    "response.raise_for_status()\n" +
    'for name, answer in response.json()["attributes"].items():\n' +
    '    print(name, answer["label"], answer["confidence"], answer["abstention"] or "accepted")\n'
  );
};
