// The field that searches labels, and the list below it: a combobox by the pattern of the ARIA guide.

import { $, element, percent } from "../playground/dom.js";

const SHOWN = 9; // while something is typed: as many as there are digits

const fold = (text) => text.normalize("NFKD").replace(/\p{M}/gu, "").toLowerCase();

/** Labels that have the words typed: first those that begin with them, then those of which a word does. */
const matches = (labels, typed) => {
  const words = fold(typed.trim());
  const rank = (label) => {
    const text = fold(label);
    if (text.startsWith(words)) return 0;
    if (text.split(/[\s\-/&]+/).some((word) => word.startsWith(words))) return 1;
    return text.includes(words) ? 2 : 3;
  };
  return labels.filter((label) => rank(label) < 3).sort((a, b) => rank(a) - rank(b));
};

export class Chooser {
  #labels = [];
  #candidates = [];
  #chosen = null;
  #shown = [];
  #at = -1;

  /**
   * `actions`: `choose(label)` where one label fits; where several may, `changed(labels)` each time that one is chosen or
   * not any more, and `save(labels)`; and `accept`, `none`, `skip`, `undo`, which take nothing.
   */
  constructor(actions) {
    this.actions = actions;
    this.input = $("search");
    this.list = $("labels");
    this.input.addEventListener("input", () => this.#draw());
    this.input.addEventListener("keydown", (event) => this.#key(event));
    this.list.addEventListener("click", (event) => {
      const option = event.target.closest("[role=option]");
      if (option) this.#choose(option.dataset.label);
    });
    this.list.addEventListener("mousedown", (event) => event.preventDefault()); // the field keeps the focus
  }

  /**
   * Ask for one of `labels`, or for all that fit where `several` may; `candidates` of the model, best first: none where
   * its answer is not to be seen.
   */
  show(labels, candidates, several) {
    this.#labels = labels;
    this.#candidates = candidates;
    this.#chosen = several ? new Set() : null;
    this.list.setAttribute("aria-multiselectable", String(several));
    if (several) this.actions.changed([]);
    this.digitsChoose = !labels.some((label) => /^\d/.test(label));
    this.input.value = "";
    this.#draw();
  }

  focus() {
    this.input.focus();
  }

  /** Save what is chosen, if anything is. */
  save() {
    if (this.#chosen?.size) this.actions.save([...this.#chosen]);
  }

  #choose(label) {
    if (!this.#chosen) return this.actions.choose(label);
    if (!this.#chosen.delete(label)) this.#chosen.add(label);
    this.#clear();
    this.actions.changed([...this.#chosen]);
  }

  #clear() {
    this.input.value = "";
    this.#draw();
  }

  #draw() {
    const typed = this.input.value.trim();
    const byLabel = new Map(this.#candidates.map(({ label, confidence }) => [label, confidence]));
    if (typed) this.#shown = matches(this.#labels, typed).slice(0, SHOWN);
    else this.#shown = byLabel.size ? [...byLabel.keys()] : [...this.#labels];
    this.#at = typed && this.#shown.length ? 0 : -1;
    this.list.replaceChildren(...this.#shown.map((label, index) => this.#option(label, index, byLabel.get(label))));
    $("none-found").hidden = this.#shown.length > 0;
    this.list.hidden = this.#shown.length === 0;
    this.list.scrollTop = 0;
    this.#mark();
  }

  #option(label, index, confidence) {
    const digit = this.digitsChoose && this.#shown.length <= SHOWN ? index + 1 : null;
    return element(
      "li",
      { id: `label-${index}`, attributes: { role: "option", "data-label": label } },
      digit && element("kbd", { textContent: digit, attributes: { "aria-hidden": "true" } }),
      element("span", { textContent: label }),
      confidence === undefined ? null : element("span", { className: "number", textContent: percent(confidence) }),
    );
  }

  #mark() {
    [...this.list.children].forEach((option, index) => {
      const selected = this.#chosen ? this.#chosen.has(option.dataset.label) : index === this.#at;
      option.setAttribute("aria-selected", String(selected));
      option.classList.toggle("active", index === this.#at);
    });
    const marked = this.list.children[this.#at];
    if (marked) this.input.setAttribute("aria-activedescendant", marked.id);
    else this.input.removeAttribute("aria-activedescendant");
    marked?.scrollIntoView({ block: "nearest" });
  }

  #move(step) {
    const count = this.#shown.length;
    if (!count) return;
    this.#at = this.#at < 0 && step < 0 ? count - 1 : (this.#at + step + count) % count;
    this.#mark();
  }

  #key(event) {
    if (event.isComposing || event.ctrlKey || event.metaKey || event.altKey) return;
    const empty = this.input.value === "";
    const act = {
      ArrowDown: () => this.#move(1),
      ArrowUp: () => this.#move(-1),
      Enter: () => (this.#at >= 0 ? this.#choose(this.#shown[this.#at]) : empty && this.#finish()),
      Escape: () => this.#clear(),
      ...(empty && { ArrowRight: this.actions.skip, ArrowLeft: this.actions.undo }),
      ...(this.digitsChoose && this.#digits(empty)),
    }[event.key];
    if (!act) return;
    event.preventDefault();
    if (!event.repeat || event.key.startsWith("Arrow")) act();
  }

  #finish() {
    if (this.#chosen?.size) this.save();
    else this.actions.accept();
  }

  #digits(empty) {
    const none = this.#chosen?.size ? () => {} : this.actions.none; // some fit, so this is a slip
    const digits = empty ? { 0: none } : {};
    if (this.#shown.length <= SHOWN) this.#shown.forEach((label, at) => (digits[at + 1] = () => this.#choose(label)));
    return digits;
  }
}
