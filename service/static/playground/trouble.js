// A problem, said so that people know what happened and what to do.

import { element } from "./dom.js";

export const clear = (container) => container.replaceChildren();

/**
 * Show a problem. `retry`: what the button does; null: no button.
 *
 * Returns a function that shows how many seconds are left until it is tried again by itself.
 */
export const show = (container, problem, retry = null) => {
  const before = container.firstChild;
  if (retry && before && before.dataset.code === problem.code) return before.tick; // said already; keeps the focus
  const detail = problem.detail && element("p", { className: "detail", textContent: sentence(problem.detail) });
  const said = element(
    "div",
    { attributes: { role: "alert" } },
    element("p", { className: "title", textContent: problem.title }),
    detail || null,
    problem.advice && element("p", { textContent: problem.advice }),
  );
  const countdown = element("span", { className: "countdown" });
  const again = element("button", { type: "button", textContent: "Try now" });
  again.addEventListener("click", () => retry());
  container.replaceChildren(
    element(
      "div",
      { className: "problem" },
      said,
      retry && element("p", { className: "actions" }, again, countdown),
      problem.requestId && element("p", { className: "small", textContent: `Request id ${problem.requestId}` }),
    ),
  );
  const tick = (seconds) => {
    countdown.textContent = `It is tried again in ${seconds} s.`;
  };
  container.firstChild.dataset.code = problem.code;
  return Object.assign(container.firstChild, { tick }).tick;
};

const sentence = (text) => {
  const whole = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?…]$/.test(whole) ? whole : `${whole}.`;
};
