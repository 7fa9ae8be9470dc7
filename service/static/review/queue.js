// The items that this reviewer has: some are fetched ahead, so that the next one is there at once.

import { call } from "../playground/api.js";

const AHEAD = 4;

/** Items in the order in which they are judged, and the decisions that can be undone. */
export class Queue {
  #name;
  #items = [];
  #decided = [];
  #fetching = null;

  /** `name`: of the reviewer; null where the API key says who it is. */
  constructor(name) {
    this.#name = name && { reviewer: name };
    this.reviewer = "";
    this.waiting = { random: 0, abstained: 0 };
    this.judged = 0;
  }

  get current() {
    return this.#items[0] ?? null;
  }

  get canUndo() {
    return this.#decided.length > 0;
  }

  /** Fetch items until some are there, or none waits. */
  async fill() {
    this.#fetching ??= this.#fetch().finally(() => {
      this.#fetching = null;
    });
    await this.#fetching;
  }

  async #fetch() {
    const query = new URLSearchParams({ ...this.#name, count: AHEAD + 1 });
    const { reply } = await call(`v1/reviews/next?${query}`);
    const known = new Set(this.#items.map(({ item }) => item));
    this.#items.push(...reply.items.filter(({ item }) => !known.has(item) && !this.#isDecided(item)));
    this.waiting = reply.waiting;
    this.reviewer = reply.reviewer;
  }

  #isDecided(item) {
    return this.#decided.includes(item);
  }

  /** Send a decision on the current item (`choice`: its `label`, or `labels` where several may fit), and go on to the next one. Throws `Problem`: then the item stays. */
  async decide(decision, choice = {}) {
    const { item } = this.current;
    try {
      await this.#send(item, decision, choice);
    } catch (error) {
      if (error.code === "already_reviewed" || error.code === "not_found") this.#items.shift(); // it is no longer ours
      throw error;
    }
    this.#items.shift();
    this.#decided.push(item);
    this.judged += 1;
    if (this.#items.length <= 1) {
      if (this.current) this.fill().catch(() => {}); // shown when the next item is needed
      else await this.fill();
    }
  }

  /** Take back the last decision: its item is the current one again. */
  async undo() {
    const { undone } = (await this.#send(this.#decided.at(-1), "undo")).reply;
    this.#decided.pop();
    this.judged -= 1;
    this.#items = [undone, ...this.#items.filter(({ item }) => item !== undone.item)];
  }

  #send(item, decision, choice) {
    return call("v1/reviews", { json: { ...this.#name, item, decision, ...choice } });
  }
}
