// Helpers for the DOM. Text is only ever inserted as text, because titles and labels are untrusted input.

export const $ = (id) => document.getElementById(id);

/** Create an element. `properties` are set as properties, those under `attributes` as attributes. */
export const element = (tag, { attributes = {}, ...properties } = {}, ...children) => {
  const node = Object.assign(document.createElement(tag), properties);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
};

export const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)} %`;

/** A percentage without trailing zeros, for target precisions: 0.95 is "95 %", 0.995 is "99.5 %". */
export const shortPercent = (share) => `${Number((100 * share).toFixed(2))} %`;

export const plural = (count, one, many = `${one}s`) => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;

/** `baseColour` and `base_colour` in a readable form: "Base colour". */
export const readable = (name) => {
  const words = name.replace(/([a-z0-9])([A-Z])/g, "$1 $2").replace(/[_-]+/g, " ").trim().toLowerCase();
  return words.charAt(0).toUpperCase() + words.slice(1) || name;
};

/** Make a tablist work with one tab stop, arrow keys, Home and End. Returns a function that selects a tab by id. */
export const tabs = (list, onSelect) => {
  const all = [...list.querySelectorAll("[role=tab]")];
  const select = (id, { focus = false } = {}) => {
    for (const tab of all) {
      tab.setAttribute("aria-selected", String(tab.id === id));
      tab.tabIndex = tab.id === id ? 0 : -1;
      if (tab.id === id && focus) tab.focus();
    }
    onSelect(id);
  };
  list.addEventListener("click", (event) => {
    const tab = event.target.closest("[role=tab]");
    if (tab) select(tab.id);
  });
  list.addEventListener("keydown", (event) => {
    const at = all.indexOf(document.activeElement);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: all.length - 1 }[event.key];
    if (to === undefined || at < 0) return;
    event.preventDefault();
    select(all[(to + all.length) % all.length].id, { focus: true });
  });
  return select;
};

/** Show a row of radio buttons. `options`: `[value, text]` pairs. */
export const segments = (container, name, options, chosen, onChange) => {
  container.replaceChildren(
    ...options.map(([value, text]) => {
      const radio = element("input", { type: "radio", name, value, checked: value === chosen });
      radio.addEventListener("change", () => onChange(value));
      return element("label", {}, radio, element("span", { textContent: text }));
    }),
  );
};

export const save = (name, text, type) => {
  const url = URL.createObjectURL(new Blob([text], { type }));
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
};
