// Refusals on the page: beside the field that they are about, and when the same request may be sent again.
import { at } from "./dom.js";
import { sources } from "./images.js";

const SECOND_MS = 1000;
const PRIVATE = "The operator of this service can allow private addresses with the setting IMAGE_TO_3D_ALLOW_PRIVATE_ADDRESSES=yes.";
let countdown;

/** What can be done about a failure, as a sentence; "" where the message says it all. */
export function remedy({ code = "", retryable = false }) {
  if (code === "blocked_address") return PRIVATE;
  return retryable ? "The same request may succeed when it is sent again." : "";
}

export function clearProblems() {
  for (const problem of document.querySelectorAll(".problem")) problem.textContent = "";
  for (const input of document.querySelectorAll("[aria-invalid]")) input.removeAttribute("aria-invalid");
}

/** Show a message of the API beside its field; the first field of several gets the focus. False where it is about none. */
export function showProblem(message, { status = 0, code = "" } = {}) {
  const field = fieldOf(message, status, code);
  if (!field) return false;
  const isFirst = !document.querySelector("[aria-invalid]");
  document.querySelector(`.problem[data-for="${CSS.escape(field)}"]`).textContent = message;
  const input = at({ key: "key", image: "choose", prompt: "prompt" }[field] ?? `option-${field}`) ?? document.querySelector(`input[name="${CSS.escape(field)}"]`);
  input.closest("details")?.setAttribute("open", "");
  input.setAttribute("aria-invalid", "true");
  if (isFirst) input.focus();
  return true;
}

// A message of the API begins with the name of the field that it is about, or with the host of an address.
function fieldOf(message, status, code) {
  if (status === 401 || status === 402) return "key";
  if (code === "blocked_address") return isAboutWebhook(message) ? "webhook" : "image";
  if (/^image\b|\bimages?\b/.test(message)) return "image";
  const first = message.split(/[ .]/, 1)[0];
  return document.querySelector(`.problem[data-for="${CSS.escape(first)}"]`) ? first : null;
}

// Images are checked before the webhook.
function isAboutWebhook(message) {
  const names = (address) => Boolean(address) && message.startsWith(`${hostOf(address)} `);
  return names(at("option-webhook")?.value) && !sources().some(({ address }) => names(address));
}

// The host of a URL as the API writes it: as it was given, in lower case and without brackets. `URL` would rewrite 127.1.
const hostOf = (address) => (/^\s*https?:\/\/(?:[^/?#]*@)?(\[[^\]]*\]|[^/?#:]*)/i.exec(address)?.[1] ?? "").replace(/^\[|\]$/g, "").toLowerCase();

/** Count the seconds down until a request may be sent again; a listener hears the first and the last of them. */
export function countDown(element, seconds) {
  clearInterval(countdown);
  let left = Math.ceil(seconds);
  const show = () => (element.textContent = left > 0 ? `You can send it again in ${left} s.` : "You can send it again now.");
  show();
  if (left <= 0) return;
  countdown = setInterval(() => {
    left -= 1;
    show();
    if (left <= 0) {
      clearInterval(countdown);
      at("said").textContent = element.textContent;
    }
  }, SECOND_MS);
}

export const stopCountDown = () => clearInterval(countdown);
