// The playground: from images and options to a model in a viewer. Each job has an address, `#job/ID`; a reload, a link
// and the browser's history lead back to it.
import { Refused, cancel, contract, engines, exportAgain, fetchJob, follow, submit } from "./jobs.js";
import { at, make, tabs } from "./dom.js";
import { clearProblems, countDown, remedy, showProblem, stopCountDown } from "./problems.js";
import { allRead, count, firstName, image, preview, setAnglesUsed, sources, viewAngles, watchImages } from "./images.js";
import { bytes } from "./shrink.js";
import { canMake, offerExports, showExport, watchExports } from "./exports.js";
import { confirmCopy, showCode, toClipboard, watchCode } from "./code.js";
import { ends, isGlb, showResult, showShared } from "./result.js";
import { filesOf, jobName, sharedFile, shareLink } from "./files.js";
import { isUsed, options, setImageCount, showOptions, takesText, watchOptions } from "./options.js";
import { key, watchKey } from "./key.js";
import { loadViewer, STAYS_STILL } from "./viewer.js";
import { markCurrent, refreshHistory, watchHistory } from "./history.js";

const STAGES = { sending: "Upload", queued: "Queue", intake: "Image", generate: "Shape", export: "Texture", deliver: "Files" };
const MAX_TRACK_ID_CHARS = 255;
const MAX_NAME_CHARS = 60; // of a text, which names the files

// What the page works on: `{id, key, controller, isSent, isCancelled}`; whatever was begun before it is left alone.
let task = null;
// The body of the job whose result is on the page, and the file of its model.
let shown = null;
let shownModel = null;
// What the next model is made from: image or text.
let kind = "image";

const prompt = () => at("prompt").value.trim();
const is = (state) => document.body.dataset.state === state;

function begin(id = null) {
  if (task?.id) task.controller.abort(); // an image that is being sent goes on: its job appears in the history
  stopCountDown();
  task = { id, key: key(), controller: new AbortController(), isSent: id !== null, isCancelled: false };
  return task;
}

function turnTo(state, said) {
  document.body.dataset.state = state;
  at("submit").setAttribute("aria-disabled", String(state === "running"));
  at("submit").textContent = state === "running" ? "Working on it …" : state === "empty" || !(kind === "text" ? prompt() : count()) ? "Make it 3D" : "Make it 3D again";
  if (said) at("said").textContent = said;
  if (state === "empty" || state === "failed") shown = shownModel = null;
}

// On a phone the result is below the form.
const scrollToResult = () => at("result").scrollIntoView({ block: "nearest", behavior: STAYS_STILL.matches ? "auto" : "smooth" });

function showProgress({ stage, progress, queue_position: position, eta }, message) {
  at("progress").value = progress;
  at("percent").textContent = Math.round(progress);
  const names = Object.keys(STAGES);
  const here = Math.max(1, names.indexOf(stage)) * Number(stage !== "sending");
  at("steps").replaceChildren(
    ...names.map((name, place) => make("li", { textContent: STAGES[name], className: place < here ? "past" : place === here ? "now" : "" })),
  );
  const isWaiting = !(stage in STAGES) || stage === "queued";
  const words = position > 1 ? `Number ${position} in the queue` : isWaiting ? "Starting" : `${STAGES[stage]}, step ${here + 1} of ${names.length}`;
  // A listener hears each stage once, not each percent.
  if (at("said").textContent !== words) at("said").textContent = words;
  at("message").textContent = message ?? (position > 1 ? `${words}.` : "");
  at("waiting").textContent = eta ? ` About ${eta} s left` : "";
}

function showSending(loaded, total) {
  const isSent = total > 0 && loaded >= total;
  const message = isSent ? "The image has arrived." : `Sending the image${total ? `: ${bytes(loaded)} of ${bytes(total)}` : ""}`;
  showProgress({ stage: "sending", progress: total ? (100 * loaded) / total : 0 }, message);
}

function showImageOf(url) {
  if (url) at("running-image").src = url;
  else at("running-image").removeAttribute("src");
}

// Why there is no result. A result that is on the page stays there, with the reason above it.
function showFailure(title, message, { status, code, retryable, retryAfter, keeps } = {}) {
  const place = keeps && shown ? "notice" : "failure";
  at(`${place}-title`).textContent = title;
  at(place).textContent = message;
  at(`${place}-hint`).textContent = remedy({ code, retryable });
  if (retryAfter) countDown(at(`${place}-hint`), retryAfter);
  at("notice-box").hidden = place !== "notice";
  turnTo(place === "notice" ? "done" : "failed", `${title}. ${message}`);
  if (shown) setAddress(`#job/${shown.id}`);
  if (status || code) showProblem(message, { status, code }); // only what the service says begins with a field
}

async function showEnd(body) {
  if (body.status !== "success") {
    const isCancelled = body.error_code === "cancelled";
    return showFailure(isCancelled ? "Cancelled" : "The job did not succeed", body.message, { code: body.error_code, retryable: body.retryable, keeps: isCancelled });
  }
  at("notice-box").hidden = true;
  [shown, shownModel] = [body, filesOf(body).find((file) => file.kind === "model")];
  at("share").hidden = false;
  offerExports(body);
  showExport({});
  turnTo("done", `Done in ${body.generationTime} seconds.`);
  const model = await showResult(body, () => makeGlb(body));
  if (model && shown === body) shownModel = model;
}

// Only a GLB can be turned in the viewer. The same `once` gives the same export when the job is opened again.
async function makeGlb(body) {
  if (!canMake("glb")) throw new Error("the service makes no other files of a finished job.");
  const fields = { output_format: "glb", compression: "none", temp: true, track_id: body.track_id };
  const made = await ended(await exportAgain(key(), body.id, fields, `playground-plain-glb-of-${body.id}`));
  const file = filesOf(made).find((one) => isGlb(one) && one.isHere);
  if (!file) throw new Error("the model lies where this page does not read.");
  return file;
}

// The final body of an export, whose progress is not shown.
async function ended(body) {
  const last = body.status === "processing" ? await follow(key(), body.id, () => {}) : body;
  if (last.status !== "success") throw new Refused(last.message, { code: last.error_code });
  return last;
}

function refuse(error, keeps = true) {
  if (error.name === "AbortError") return;
  const words = error instanceof Refused ? error.message : `The page failed: ${error.message}`;
  showFailure(error.status === 0 ? "No connection" : "The request was refused", words, { ...error, keeps });
}

async function run(event) {
  event.preventDefault();
  if (is("running")) return;
  clearProblems();
  await allRead();
  const isText = kind === "text";
  if (isText ? !prompt() : !count()) {
    showProblem(isText ? "prompt is required" : "image is required");
    if (!key()) showProblem("API key required", { status: 401 });
    return;
  }
  const angles = viewAngles();
  const views = { ...(count() > 1 ? { multi_image: true } : {}), ...(angles ? { view_angles: angles } : {}) };
  const given = isText ? { prompt: prompt(), ...options() } : { ...options(), ...views };
  showCode(key(), isText ? [] : sources(), given);
  const now = begin();
  showImageOf(isText ? "" : preview());
  turnTo("running");
  scrollToResult();
  showSending(0, 0);
  const onSent = (loaded, total) => {
    now.isSent = loaded >= total;
    if (task === now && !now.isCancelled) showSending(loaded, total);
  };
  try {
    const name = isText ? [...prompt().replace(/\s+/g, " ")].slice(0, MAX_NAME_CHARS).join("") : firstName().slice(0, MAX_TRACK_ID_CHARS);
    const body = await submit(now.key, { ...(isText ? {} : { image: image() }), track_id: name, ...given }, { onSent, signal: now.controller.signal });
    now.id = body.id;
    if (now.isCancelled) await cancel(now.key, now.id);
    if (task !== now) return refreshHistory(now.key);
    setAddress(`#job/${body.id}`);
    loadViewer().catch(() => {}); // showing the model tries again, and says so if it fails
    await watch(now, body);
  } catch (error) {
    if (task !== now) return;
    if (error.name === "AbortError") showFailure("Cancelled", "The image was not sent, and no job was made.", { keeps: true });
    else refuse(error);
  }
}

// Follow a job to its end, unless the page has turned to something else.
async function watch(now, body) {
  refreshHistory(now.key);
  const last = body.status === "processing" ? await follow(now.key, now.id, (event) => !now.isCancelled && showProgress(event), now.controller.signal) : body;
  if (task !== now) return;
  if (body.status === "processing") refreshHistory(now.key);
  await showEnd(last);
}

async function stop() {
  const now = task;
  if (!now || now.isCancelled) return;
  at("message").textContent = "Cancelling.";
  at("waiting").textContent = "";
  now.isCancelled = true;
  // While the image is being sent no job exists. Once it is sent one may: its id comes with the answer.
  if (!now.isSent) return now.controller.abort();
  if (!now.id) return;
  try {
    await cancel(now.key, now.id);
  } catch (error) {
    now.isCancelled = false;
    at("message").textContent = error.message;
  }
}

/** Show a job by its id: its result, its progress, or why it failed. */
async function open(id) {
  markCurrent(id);
  if (!key()) return showFailure("A key is needed", `Enter the API key that job ${id} belongs to.`);
  if (shown?.id === id && is("done")) return;
  const now = begin(id);
  try {
    const body = await fetchJob(now.key, id, now.controller.signal);
    if (task !== now) return;
    if (body.status === "processing") {
      showImageOf("");
      turnTo("running");
      showProgress(body);
      scrollToResult();
    }
    await watch(now, body);
    if (task === now) scrollToResult();
  } catch (error) {
    if (task === now) refuse(error, false);
  }
}

async function makeFiles(fields) {
  if (at("again-go").getAttribute("aria-disabled") === "true") return;
  const from = shown;
  showExport({ isRunning: true });
  at("said").textContent = "The files are being made.";
  try {
    const body = await ended(await exportAgain(key(), from.id, { ...fields, track_id: from.track_id }));
    refreshHistory(key());
    if (shown !== from) return;
    setAddress(`#job/${body.id}`);
    await showEnd(body);
    at("said").textContent = "The files are ready.";
  } catch (error) {
    if (shown === from) showExport({ problem: error.message });
  }
}

async function share() {
  const name = shown ? jobName(shown) : sharedFile(location.hash).name;
  await toClipboard(shown ? shareLink(shownModel, name) : location.href);
  const end = ends(shownModel?.expires_at);
  confirmCopy(at("share"), `The link is copied. It needs no key${end ? ` and works until ${end}` : ""}.`);
}

function setAddress(hash) {
  if (location.hash !== hash) history.pushState(null, "", hash);
  markCurrent(shownId());
}

const shownId = () => Number(location.hash.match(/^#job\/(\d+)$/)?.[1] ?? 0) || null;

// Follow the address: a job, a shared model, or the empty page.
async function route() {
  const file = sharedFile(location.hash);
  if (file) {
    begin();
    turnTo("done");
    [shown, shownModel] = [null, null];
    at("again").hidden = true;
    at("notice-box").hidden = true;
    await showShared(file);
    return scrollToResult();
  }
  if (shownId()) return open(shownId());
  markCurrent(null);
  if (location.hash === "" && !is("empty")) {
    begin();
    turnTo("empty");
  }
}

function keyChanged() {
  refreshHistory(key());
  if (shownId() && !is("running") && !is("done")) open(shownId());
}

// A tab for texts where an engine takes them. The options are those of the chosen tab.
function offerKinds(fields) {
  const kinds = ["image", "text"];
  at("kinds").hidden = !takesText();
  tabs(at("kinds"), (place) => {
    kind = kinds[place];
    for (const one of kinds) at(`panel-${one}`).hidden = one !== kind;
    clearProblems();
    showOptions(fields[kind], kind);
    setImageCount(count());
  });
}

async function start() {
  at("job").addEventListener("submit", run);
  at("job").addEventListener("keydown", (event) => (event.ctrlKey || event.metaKey) && event.key === "Enter" && at("job").requestSubmit());
  at("cancel").addEventListener("click", stop);
  at("share").addEventListener("click", share);
  at("notice-close").addEventListener("click", () => (at("notice-box").hidden = true));
  watchCode();
  watchHistory();
  watchKey(keyChanged);
  watchImages(() => {
    setImageCount(count());
    clearProblems();
  });
  addEventListener("hashchange", route);
  try {
    const [fields, offered] = await Promise.all([contract(), engines()]);
    watchOptions(offered, () => setAnglesUsed(kind === "image" && isUsed("view_angles")));
    offerKinds(fields);
    watchExports(fields.export, makeFiles);
  } catch {
    return showFailure("The page is not complete", "The service does not tell its options. Reload the page once it is back.");
  }
  refreshHistory(key());
  await route();
}

start();
