// The jobs of the key, newest first. Knows nothing of how a job is shown: each entry is a link to the job's address.
import { at, make } from "./dom.js";
import { filesOf, jobName } from "./files.js";
import { list } from "./jobs.js";
import { ends } from "./result.js";

const PAGE = 12;
const STATES = { processing: "running", failed: "failed" };
let shown = [];
let next = null;
let owner = "";
let current = null;

/** Read the newest jobs of the key and show them; nothing without a key, or with one that the service does not know. */
export async function refreshHistory(key) {
  owner = key;
  if (!key) return clear();
  try {
    await read(undefined, key);
  } catch {
    if (owner === key) clear();
  }
}

/** Mark the job that is on the page; null where there is none. */
export function markCurrent(id) {
  current = id;
  for (const link of at("jobs").querySelectorAll("a")) mark(link);
}

export function watchHistory() {
  at("more-jobs").addEventListener("click", () => read(next, owner).catch(() => {}));
}

async function read(before, key) {
  const page = await list(key, { limit: PAGE, before });
  if (owner !== key) return;
  shown = before ? [...shown, ...page.calls] : page.calls;
  next = page.next;
  show();
}

function clear() {
  shown = [];
  next = null;
  show();
}

function show() {
  document.body.classList.toggle("has-jobs", shown.length > 0);
  at("jobs").replaceChildren(...shown.map(entry));
  at("more-jobs").hidden = next === null;
}

function entry(body) {
  const blank = make("span", { className: "blank", textContent: STATES[body.status] ?? body.meta.output_format });
  const thumbnail = body.status === "success" && filesOf(body).find((file) => file.kind === "thumbnail" && file.isHere);
  const image = thumbnail ? make("img", { src: thumbnail.url, alt: "", loading: "lazy", on: { error: () => image.replaceWith(blank) } }) : blank;
  const state = body.error_code === "cancelled" ? "cancelled" : (STATES[body.status] ?? body.meta.output_format.toUpperCase());
  const words = make("span", { className: "about" }, make("span", { className: "job-name", textContent: jobName(body) }), make("small", { textContent: `${state} · ${ends(body.created_at)}` }));
  const link = make("a", { href: `#job/${body.id}`, data: { id: body.id } }, image, words);
  mark(link);
  return make("li", { className: body.status }, link);
}

function mark(link) {
  if (Number(link.dataset.id) === current) link.setAttribute("aria-current", "true");
  else link.removeAttribute("aria-current");
}
