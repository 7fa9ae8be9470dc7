// Shows a problem: what happened and what to do about it.

import { element } from "./dom.js";

export const clear = (container) => container.replaceChildren();

/**
 * Show a problem. `retry`: called by the retry button; null: no button.
 *
 * Returns a function that shows the seconds left until the next automatic retry.
 */
export const show = (container, problem, retry = null) => {
  const before = container.firstChild;
  if (retry && before && before.dataset.code === problem.code) return before.tick; // already shown; redrawing it would lose the focus
  const detail = problem.detail && element("p", { className: "detail", textContent: sentence(problem.detail) });
  const message = element(
    "div",
    { attributes: { role: "alert" } },
    element("p", { className: "title", textContent: problem.title }),
    detail || null,
    problem.advice && element("p", { textContent: problem.advice }),
  );
  const countdown = element("span", { className: "countdown" });
  const button = element("button", { type: "button", textContent: "Retry now" });
  button.addEventListener("click", () => retry());
  container.replaceChildren(
    element(
      "div",
      { className: "problem" },
      message,
      retry && element("p", { className: "actions" }, button, countdown),
      problem.requestId && element("p", { className: "small", textContent: `Request ID ${problem.requestId}` }),
    ),
  );
  const tick = (seconds) => {
    countdown.textContent = `Retrying in ${seconds} s.`;
  };
  container.firstChild.dataset.code = problem.code;
  return Object.assign(container.firstChild, { tick }).tick;
};

const sentence = (text) => {
  const capitalised = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?…]$/.test(capitalised) ? capitalised : `${capitalised}.`;
};
