// The API key: typed, kept by the browser, or passed by `image-to-3d serve --open` in the fragment of the address.
import { at } from "./dom.js";

const NAME = "image-to-3d.key";
const PAUSE_MS = 400;

// The fragment is never sent to a server. It leaves the address, and with it the browser's history, at once.
function takeFromAddress() {
  const given = new URLSearchParams(location.hash.slice(1)).get("key");
  if (given === null) return "";
  history.replaceState(null, "", location.pathname + location.search);
  return given;
}

const handedOver = takeFromAddress();

export const key = () => at("key").value.trim();

/** Fill the field; `changed` is called when the key is another one and has been typed to its end. */
export function watchKey(changed) {
  const remembered = localStorage.getItem(NAME);
  at("remember").checked = remembered !== null;
  at("key").value = handedOver || (sessionStorage.getItem(NAME) ?? remembered ?? "");
  let pause;
  at("key").addEventListener("input", () => {
    keep();
    clearTimeout(pause);
    pause = setTimeout(changed, PAUSE_MS);
  });
  at("remember").addEventListener("change", keep);
  at("reveal").addEventListener("click", () => {
    const isShown = at("key").type === "text";
    at("key").type = isShown ? "password" : "text";
    at("reveal").textContent = isShown ? "Show" : "Hide";
    at("reveal").setAttribute("aria-pressed", String(!isShown));
  });
  if (handedOver) at("key-hint").textContent = "The key of this service's first start. Keep it: it is shown only once.";
  keep();
}

// In this tab, or in this browser by choice; never in both.
function keep() {
  const [used, unused] = at("remember").checked ? [localStorage, sessionStorage] : [sessionStorage, localStorage];
  unused.removeItem(NAME);
  if (key()) used.setItem(NAME, key());
  else used.removeItem(NAME);
  at("key-hint").hidden = key() !== "" && key() !== handedOver;
}
