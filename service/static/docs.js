// Renders openapi.json: a section for each operation, with an example to copy and to run, and one for each type.

const KEY = "cma-clip-api-key"; // where the playground keeps it
const FILES = { image: "photo.jpg", images: "images.zip", table: "listings.csv" }; // examples of files in forms
const TEXTS = { title: "Turtle Check Men Navy Blue Shirt" };

const loadDescription = async () => {
  try {
    const response = await fetch("openapi.json");
    if (response.ok) return await response.json();
  } catch {
    // Whatever the error was, the message below is shown.
  }
  document.querySelector("#operations").textContent =
    "The API description could not be loaded: the service may be down or still starting. Reload the page.";
  return { paths: {} };
};

const description = await loadDescription();
const schemas = description.components?.schemas ?? {};

const element = (tag, properties = {}, ...children) => {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
};

// ── types ──────────────────────────────────────────────────────────────────────────────────────────────────

const nameOf = ({ $ref }) => $ref.split("/").pop();

const resolve = (schema) => (schema?.$ref ? schemas[nameOf(schema)] : schema);

const joined = (parts, separator) => parts.flatMap((part, at) => (at ? [separator, part] : [part]));

/** The type of a value: text, with links to the types that have a name. */
const typeOf = (schema) => {
  if (!schema) return element("span", {}, "any");
  if (schema.$ref) return element("a", { href: `#type-${nameOf(schema)}` }, nameOf(schema));
  const options = schema.anyOf ?? schema.oneOf;
  if (options && !schema.type) return element("span", {}, ...joined(options.map(typeOf), " or "));
  if (schema.type === "array") return element("span", {}, "list of ", typeOf(schema.items));
  if (schema.additionalProperties?.$ref) return element("span", {}, "object of ", typeOf(schema.additionalProperties));
  return element("span", {}, schema.contentMediaType ? "file" : (schema.format ?? schema.type ?? "any"));
};

const table = (heads, rows) =>
  element(
    "div",
    { className: "scroll", tabIndex: 0, role: "group", ariaLabel: heads.join(", ") },
    element(
      "table",
      {},
      element("thead", {}, element("tr", {}, ...heads.map((text) => element("th", { scope: "col" }, text)))),
      element("tbody", {}, ...rows.map((row) => element("tr", {}, ...row.map((value) => element("td", {}, value))))),
    ),
  );

const fields = (schema) => {
  const known = resolve(schema);
  if (known?.enum) return element("p", {}, `One of ${known.enum.join(", ")}.`);
  const rows = Object.entries(known?.properties ?? {}).map(([name, field]) => [
    name,
    typeOf(field),
    known.required?.includes(name) ? "yes" : "",
    field.default === undefined || field.default === null ? "" : JSON.stringify(field.default),
    field.description ?? "",
  ]);
  return rows.length ? table(["field", "type", "required", "default", "meaning"], rows) : element("p", {}, typeOf(schema));
};

const typeSection = (name) =>
  element(
    "section",
    { id: `type-${name}`, className: "type" },
    element("h2", {}, element("code", {}, name)),
    schemas[name].description ? element("p", {}, schemas[name].description) : null,
    fields({ $ref: `#/components/schemas/${name}` }),
  );

// ── examples ───────────────────────────────────────────────────────────────────────────────────────────────

const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;

const formLines = (schema) =>
  Object.entries(resolve(schema).properties).flatMap(([name, field]) => {
    const isFile = JSON.stringify(field).match(/"(binary|contentMediaType)"/);
    if (isFile) return [`-F ${name}=@${FILES[name] ?? "file"}`];
    return TEXTS[name] ? [`-F ${shell(`${name}=${TEXTS[name]}`)}`] : [];
  });

const jsonExample = (content) => resolve(content["application/json"]?.schema)?.examples?.[0];

/** The command for an operation; an API key is taken from the environment. */
const curl = (path, method, content = {}) => {
  const lines = [`curl ${shell(new URL(path.slice(1), document.baseURI).href)}`];
  if (["DELETE", "PUT", "PATCH"].includes(method)) lines.push(`-X ${method}`);
  if (path.startsWith("/v1/")) lines.push('-H "Authorization: Bearer $CMA_CLIP_KEY"');
  const form = content["multipart/form-data"];
  if (form) lines.push(...formLines(form.schema));
  else if (content["application/json"]) {
    lines.push("-H 'Content-Type: application/json'", `--data-raw ${shell(JSON.stringify(jsonExample(content) ?? {}))}`);
  }
  return lines.join(" \\\n  ");
};

const send = async (path, method, content) => {
  const key = sessionStorage.getItem(KEY);
  const body = method === "POST" ? JSON.stringify(jsonExample(content)) : undefined;
  const headers = { ...(key && { "X-API-Key": key }), ...(body && { "Content-Type": "application/json" }) };
  try {
    const response = await fetch(path.slice(1), { method, headers, body });
    const text = await response.text();
    const isJson = /json/.test(response.headers.get("Content-Type"));
    return `${response.status}\n${isJson ? JSON.stringify(JSON.parse(text), null, 2) : text}`;
  } catch {
    return "The service did not answer.";
  }
};

const example = (path, method, content = {}) => {
  const shown = element("pre", { tabIndex: 0 }, curl(path, method, content));
  const canRun = !path.includes("{") && (method === "GET" || (method === "POST" && jsonExample(content)));
  if (!canRun) return [element("h3", {}, "Example"), shown];
  const answer = element("pre", { tabIndex: 0, hidden: true });
  answer.setAttribute("aria-label", "Response");
  const button = element("button", { type: "button" }, "Run it here");
  button.addEventListener("click", async () => {
    answer.textContent = await send(path, method, content);
    answer.hidden = false;
  });
  return [element("h3", {}, "Example"), shown, element("p", { className: "actions" }, button), answer];
};

// ── operations ─────────────────────────────────────────────────────────────────────────────────────────────

const bodies = (title, content) =>
  Object.entries(content ?? {}).flatMap(([mediaType, { schema }]) => [
    element("h3", {}, `${title} (${mediaType})`, ...(schema?.$ref ? [": ", typeOf(schema)] : [])),
    fields(schema),
  ]);

const anchor = (path, method) => `${method}${path}`.replace(/[^A-Za-z0-9]+/g, "-").toLowerCase();

const section = ({ path, method, operation }) => {
  const content = operation.requestBody?.content;
  const success = Object.entries(operation.responses).find(([status]) => status < 300)?.[1];
  const statuses = Object.entries(operation.responses).map(([status, { description: text }]) => [status, text]);
  const paragraphs = (operation.description ?? operation.summary).split("\n\n");
  return element(
    "section",
    { id: anchor(path, method) },
    element("h2", {}, element("code", {}, `${method} ${path}`)),
    ...paragraphs.map((text) => element("p", {}, text)),
    ...example(path, method, content),
    ...(operation.parameters ?? []).map((each) => element("p", {}, `${each.in} ${each.name}: ${each.description ?? ""}`)),
    ...bodies("Request", content),
    ...bodies("Response", success?.content),
    element("h3", {}, "Status codes"),
    table(["status", "meaning"], statuses),
  );
};

const operations = Object.entries(description.paths).flatMap(([path, found]) =>
  Object.entries(found).map(([method, operation]) => ({ path, method: method.toUpperCase(), operation })),
);
const types = Object.keys(schemas).sort();
if (operations.length) {
  document.querySelector("#operations").replaceChildren(...operations.map(section), ...types.map(typeSection));
  document.querySelector("#contents").replaceChildren(
    element("h2", {}, "Calls"),
    ...operations.map(({ path, method }) =>
      element("a", { href: `#${anchor(path, method)}` }, element("span", { className: "method" }, method), " ", path),
    ),
    element("h2", {}, "Types"),
    ...types.map((name) => element("a", { href: `#type-${name}` }, name)),
  );
  document.getElementById(location.hash.slice(1))?.scrollIntoView();
}
