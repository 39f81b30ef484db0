// The playground: one job at a time, from images and options to a model in a viewer.
import { SUBMIT, Refused, cancel, fields, follow, submit } from "./jobs.js";
import { at, make, tabs } from "./dom.js";
import { options, showMultiImage, showOptions } from "./options.js";
import { count, image, preview, sources, watchImages } from "./images.js";
import { STAYS_STILL, loadViewer, showResult } from "./result.js";
import { curl, python } from "./snippets.js";

const STAGES = { queued: "Queue", intake: "Image", generate: "Shape", export: "Texture", deliver: "Files" };
const KEY = "image-to-3d.key";
const MASK = "YOUR_KEY";
const COPIED_MS = 1800;

let running = null;
let snippets = { curl: "", python: "" };

const key = () => at("key").value.trim();
const is = (state) => document.body.dataset.state === state;

function turnTo(state, said) {
  document.body.dataset.state = state;
  at("submit").setAttribute("aria-disabled", String(state === "running"));
  at("submit").textContent = state === "running" ? "Working on it …" : state === "empty" ? "Make it 3D" : "Make it 3D again";
  if (said) at("said").textContent = said;
}

function showSnippets(given) {
  const job = { url: SUBMIT, sources: sources(), given };
  snippets = { curl: curl({ ...job, key: key() }), python: python({ ...job, key: key() }) };
  at("curl").textContent = curl({ ...job, key: MASK });
  at("python").textContent = python({ ...job, key: MASK });
  document.body.classList.add("has-code");
}

function showProgress({ stage, progress, queue_position: position, eta }, message) {
  at("progress").value = progress;
  at("percent").textContent = Math.round(progress);
  const names = Object.keys(STAGES);
  const here = Math.max(0, names.indexOf(stage));
  at("steps").replaceChildren(
    ...names.map((name, place) => make("li", { textContent: STAGES[name], className: place < here ? "past" : place === here ? "now" : "" })),
  );
  const isWaiting = !(stage in STAGES) || stage === "queued";
  const words = position > 1 ? `Number ${position} in the queue` : isWaiting ? "Starting" : `${STAGES[stage]}, step ${here} of ${names.length - 1}`;
  // A listener hears each stage once, not each percent.
  if (at("said").textContent !== words) at("said").textContent = words;
  at("message").textContent = message ?? (position > 1 ? `${words}.` : "");
  at("waiting").textContent = eta ? ` About ${eta} s left` : "";
}

// A message of the API begins with the name of the field that it is about.
function fieldOf(message, status) {
  if (status === 401 || status === 402) return "key";
  if (/^image\b|\bimages?\b/.test(message)) return "image";
  const first = message.split(/[ .]/, 1)[0];
  return document.querySelector(`.problem[data-for="${CSS.escape(first)}"]`) ? first : null;
}

function clearProblems() {
  for (const problem of document.querySelectorAll(".problem")) problem.textContent = "";
  for (const input of document.querySelectorAll("[aria-invalid]")) input.removeAttribute("aria-invalid");
}

function showProblem(message, status = 0) {
  const field = fieldOf(message, status);
  if (!field) return false;
  document.querySelector(`.problem[data-for="${CSS.escape(field)}"]`).textContent = message;
  const input = at({ key: "key", image: "choose" }[field] ?? `option-${field}`) ?? document.querySelector(`input[name="${CSS.escape(field)}"]`);
  input.closest("details")?.setAttribute("open", "");
  input.setAttribute("aria-invalid", "true");
  input.focus();
  return true;
}

function showFailure(title, message, status, hint = "") {
  at("failure-title").textContent = title;
  at("failure").textContent = message;
  at("failure-hint").textContent = hint;
  turnTo("failed", `${title}. ${message}`);
  showProblem(message, status);
}

function showEnd(body) {
  if (body.status === "success") return showResult(body).then(() => turnTo("done", `Done in ${body.generationTime} seconds.`));
  const hint = body.retryable ? "The same request may succeed when it is sent again." : "";
  showFailure(body.error_code === "cancelled" ? "Cancelled" : "The job did not succeed", body.message, 0, hint);
}

async function run(event) {
  event.preventDefault();
  if (is("running")) return;
  clearProblems();
  const given = { ...options(), ...(count() > 1 ? { multi_image: true } : {}) };
  if (count()) showSnippets(given);
  if (preview()) at("running-image").src = preview();
  else at("running-image").removeAttribute("src");
  turnTo("running");
  at("result").scrollIntoView({ block: "nearest", behavior: STAYS_STILL.matches ? "auto" : "smooth" });
  showProgress({ stage: "queued", progress: 0, queue_position: 0, eta: 0 }, "Sending the image");
  try {
    let body = await submit(key(), { ...(count() ? { image: image() } : {}), ...given });
    loadViewer();
    running = { key: key(), id: body.id };
    if (body.status === "processing") body = await follow(running.key, running.id, (event) => showProgress(event));
    await showEnd(body);
  } catch (error) {
    const words = error instanceof Refused ? error.message : `The page failed: ${error.message}`;
    showFailure("The request was refused", words, error.status ?? 0);
  } finally {
    running = null;
  }
}

async function stop() {
  if (!running) return;
  at("message").textContent = "Cancelling.";
  try {
    await cancel(running.key, running.id);
  } catch (error) {
    at("message").textContent = error.message;
  }
}

// Browsers offer the clipboard only to pages that came by https or from this machine.
async function toClipboard(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = make("textarea", { value: text, className: "unseen" });
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

async function copy() {
  const chosen = at("panel-curl").hidden ? "python" : "curl";
  await toClipboard(snippets[chosen]);
  at("copy").textContent = "Copied";
  at("said").textContent = `The ${chosen} code is copied.`;
  setTimeout(() => (at("copy").textContent = "Copy"), COPIED_MS);
}

function watchKey() {
  at("key").value = sessionStorage.getItem(KEY) ?? "";
  const keep = () => {
    sessionStorage.setItem(KEY, key());
    at("key-hint").hidden = key() !== "";
  };
  at("key").addEventListener("input", keep);
  keep();
  at("reveal").addEventListener("click", () => {
    const isShown = at("key").type === "text";
    at("key").type = isShown ? "password" : "text";
    at("reveal").textContent = isShown ? "Show" : "Hide";
    at("reveal").setAttribute("aria-pressed", String(!isShown));
  });
}

at("job").addEventListener("submit", run);
at("job").addEventListener("keydown", (event) => (event.ctrlKey || event.metaKey) && event.key === "Enter" && at("job").requestSubmit());
at("cancel").addEventListener("click", stop);
at("copy").addEventListener("click", copy);
tabs(at("languages"), (chosen) => {
  at("panel-curl").hidden = chosen !== 0;
  at("panel-python").hidden = chosen !== 1;
});
watchKey();
watchImages(() => {
  showMultiImage(count() > 1);
  clearProblems();
});
fields().then(showOptions, () => showFailure("The page is not complete", "The service does not tell its options.", 0, "Reload the page once it is back."));
