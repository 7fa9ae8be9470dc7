// Renders openapi.json: one section per operation, with its parameters, bodies and status codes.

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

const element = (tag, text, ...children) => {
  const node = document.createElement(tag);
  if (text) node.textContent = text;
  node.append(...children);
  return node;
};

const resolve = (schema) =>
  schema?.$ref ? description.components.schemas[schema.$ref.split("/").pop()] : schema;

const typeName = (schema) => {
  if (!schema) return "any";
  if (schema.$ref) return schema.$ref.split("/").pop();
  const options = schema.anyOf ?? schema.oneOf;
  if (options && !schema.type) return options.map(typeName).join(" | ");
  if (schema.type === "array") return `[${typeName(schema.items)}]`;
  if (schema.additionalProperties?.$ref) return `{…: ${typeName(schema.additionalProperties)}}`;
  return schema.format ?? schema.type ?? "any";
};

const table = (heads, rows) => {
  const cells = (values, tag) => element("tr", "", ...values.map((value) => element(tag, value)));
  return element("table", "", cells(heads, "th"), ...rows.map((row) => cells(row, "td")));
};

const fields = (schema) => {
  const known = resolve(schema);
  const rows = Object.entries(known?.properties ?? {}).map(([name, field]) => [
    name,
    typeName(field),
    known.required?.includes(name) ? "yes" : "",
    field.default === undefined || field.default === null ? "" : JSON.stringify(field.default),
    field.description ?? "",
  ]);
  if (rows.length) return table(["field", "type", "required", "default", "meaning"], rows);
  return element("p", known?.enum ? `One of ${known.enum.join(", ")}` : typeName(schema));
};

// The schemas that a schema refers to, each once, so that every name is defined below the operation.
const referenced = (schema, seen = new Set()) => {
  for (const [, name] of JSON.stringify(schema ?? {}).matchAll(/"#\/components\/schemas\/(\w+)"/g)) {
    if (!seen.has(name)) {
      seen.add(name);
      referenced(description.components.schemas[name], seen);
    }
  }
  return seen;
};

const body = (title, content) =>
  Object.entries(content ?? {}).flatMap(([mediaType, { schema }]) => [
    element("h3", `${title} (${mediaType})`),
    fields(schema),
    ...[...referenced(schema)]
      .filter((name) => description.components.schemas[name] !== resolve(schema))
      .flatMap((name) => [element("h4", name), fields({ $ref: `#/components/schemas/${name}` })]),
  ]);

const section = (path, method, operation) =>
  element(
    "section",
    "",
    element("h2", "", element("code", `${method.toUpperCase()} ${path}`)),
    element("p", operation.description ?? operation.summary),
    ...(operation.parameters ?? []).map((parameter) =>
      element("p", `${parameter.in} ${parameter.name}: ${parameter.description ?? ""}`)),
    ...body("Request", operation.requestBody?.content),
    ...body("Response", operation.responses[200]?.content),
    element("h3", "Status codes"),
    table(["status", "meaning"], Object.entries(operation.responses).map(([status, { description: text }]) => [status, text])),
  );

const sections = Object.entries(description.paths).flatMap(([path, operations]) =>
  Object.entries(operations).map(([method, operation]) => section(path, method, operation)));
if (sections.length) document.querySelector("#operations").replaceChildren(...sections);
