// What the service says of its attributes: what people call their labels, and how several labels are joined.

let attributes = {};

/** Remember the answer of /v1/attributes. */
export const useAttributes = (reply) => {
  ({ attributes } = reply);
};

/** What people call a label in the browser's language; the label itself where nobody said. */
const nameOf = (attribute, label) => {
  const names = Object.entries(attributes[attribute]?.names[label] ?? {});
  const tags = new Map(names.map(([tag, name]) => [tag.toLowerCase(), name]));
  // From the most special tag to the most general: de-AT, de.
  const parts = navigator.language.toLowerCase().split("-");
  const spoken = parts.map((_, at) => parts.slice(0, parts.length - at).join("-"));
  return tags.get(spoken.find((tag) => tags.has(tag))) ?? label;
};

const named = (attribute, found) => ({
  ...found,
  text: nameOf(attribute, found.label),
  about: attributes[attribute]?.names[found.label]?.description ?? "",
});

/**
 * A prediction as the page shows it. `answered`: its label, or those of a multi-valued attribute that are accepted; the
 * best one where none is. `text`: their names. Its figures are those of the least certain of them. `others`: what else could be.
 */
const view = (attribute, prediction) => {
  const labels = prediction.labels ?? [prediction];
  const accepted = labels.filter((each) => each.accepted);
  const answered = (accepted.length ? accepted : labels.slice(0, 1)).map((each) => named(attribute, each));
  const others = prediction.labels ? labels.slice(answered.length) : prediction.candidates.slice(1);
  const least = answered.reduce((one, other) => (other.confidence < one.confidence ? other : one));
  return {
    ...prediction,
    ...least,
    answered,
    text: answered.map(({ text }) => text).join(", "),
    about: answered.map(({ about }) => about).filter(Boolean).join("; "),
    others: others.map((each) => named(attribute, each)),
  };
};

/** A reply with its predictions as the page shows them. */
export const viewOf = (reply) =>
  reply.attributes
    ? { ...reply, attributes: Object.fromEntries(Object.entries(reply.attributes).map(([name, each]) => [name, view(name, each)])) }
    : reply;

/** Join the cells of several labels as `cma-clip label` does. */
export const joinCells = (attribute, cells) => cells.join(attributes[attribute]?.separator ?? "|");
