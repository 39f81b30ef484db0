// The request of the page as code, in three languages, and the way to the clipboard.
import { at, make, tabs } from "./dom.js";
import { submitTo } from "./jobs.js";
import { curl, javascript, python } from "./snippets.js";

const LANGUAGES = { curl, python, javascript };
const MASK = "YOUR_KEY";
const COPIED_MS = 1800;
let request = null;
let chosen = "curl";

/** Show the request with the key masked; the copied text holds the key. */
export function showCode(key, sources, given) {
  request = { url: submitTo(given), key, sources, given };
  for (const [name, write] of Object.entries(LANGUAGES)) at(name).textContent = write({ ...request, key: MASK });
  document.body.classList.add("has-code");
}

export function watchCode() {
  const names = Object.keys(LANGUAGES);
  tabs(at("languages"), (place) => {
    chosen = names[place];
    for (const name of names) at(`panel-${name}`).hidden = name !== chosen;
  });
  at("copy").addEventListener("click", async () => {
    await toClipboard(LANGUAGES[chosen](request));
    confirmCopy(at("copy"), `The ${at(`tab-${chosen}`).textContent} code is copied.`);
  });
}

/** Say on a button, and to a listener, that a text was copied. */
export function confirmCopy(button, said) {
  const text = button.textContent;
  button.textContent = "Copied";
  at("said").textContent = said;
  setTimeout(() => (button.textContent = text), COPIED_MS);
}

/** Browsers offer the clipboard only to pages that came by https or from this machine. */
export async function toClipboard(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = make("textarea", { value: text, className: "unseen" });
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}
