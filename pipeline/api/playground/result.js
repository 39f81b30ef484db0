// The result of a job: the model in a viewer, the turntable video, the cut-outs, the thumbnail, facts and files.
import { at, icon, make, tabs } from "./dom.js";
import { filesOf, jobName, saveName } from "./files.js";
import { bytes } from "./shrink.js";
import { STAYS_STILL, showMessage, showModel } from "./viewer.js";

const DOWNLOAD = "M12 4v11m0 0l-4.5-4.5M12 15l4.5-4.5M5 20h14";
const KINDS = { model: "Model", material: "Material", texture: "Texture", turntable: "Turntable", splat: "Splats", cutout: "Cut-out", thumbnail: "Thumbnail", extra: "File" };

/**
 * Show the body of a job that succeeded. Only a GLB can be shown, and none in Draco: where the job has no other that
 * this page may read, `makeGlb` is to make one, and resolves to its file.
 */
export async function showResult(body, makeGlb) {
  const files = filesOf(body);
  const name = jobName(body);
  showWarning(body);
  showFacts(body, files);
  at("files").replaceChildren(...files.map((file) => fileLink(file, name)));
  const panel = showViews(files);
  const glb = files.find((file) => isGlb(file) && file.isHere && isShowable(body)) ?? (await orMessage(panel, makeGlb));
  if (!glb) return null;
  await showModel(panel, glb.url, files.find((file) => file.format === "usdz" && file.isHere)?.url);
  return glb;
}

/** Show a model alone, from a share link. */
export async function showShared({ url, name }) {
  const file = { kind: "model", format: url.split(".").pop(), url, isHere: true };
  at("warning").replaceChildren();
  at("draft").hidden = true;
  at("facts").replaceChildren();
  at("files").replaceChildren(fileLink(file, name));
  await showModel(showViews([file]), url);
}

export const isGlb = (file) => file.kind === "model" && file.format === "glb";

// The viewer's decoder of Draco lies on another host, which this page does not ask.
const isShowable = (body) => body.meta.compression !== "draco";

async function orMessage(panel, makeGlb) {
  showMessage(panel, "Making a GLB to look at …");
  try {
    return await makeGlb();
  } catch (error) {
    showMessage(panel, `There is no GLB to look at: ${error.message} The files below are complete.`);
    return null;
  }
}

// The tabs above and their panels; returns the model's panel, which is still empty.
function showViews(files) {
  const panel = make("div", { aria: { role: "tabpanel", label: "Model" } });
  const views = [{ name: "Model", panel }, ...[turntableView(files), cutoutView(files), thumbnailView(files)].filter(Boolean)];
  at("panels").replaceChildren(...views.map((view, place) => Object.assign(view.panel, { id: `view-${place}` })));
  at("tabs").replaceChildren(...views.map((view, place) => make("button", { type: "button", textContent: view.name, aria: { role: "tab", controls: `view-${place}` } })));
  tabs(at("tabs"), (chosen) => {
    views.forEach((view, place) => (view.panel.hidden = place !== chosen));
    at("tools").hidden = !views[chosen].panel.querySelector("model-viewer");
  });
  at("tabs").hidden = views.length < 2;
  return panel;
}

const view = (name, ...content) => ({ name, panel: make("div", { aria: { role: "tabpanel", label: name } }, ...content) });

function turntableView(files) {
  const file = files.find((one) => one.kind === "turntable" && one.isHere);
  return file && view("Turntable", make("video", { src: file.url, controls: true, loop: true, muted: true, playsInline: true, autoplay: !STAYS_STILL.matches, aria: { label: "Turntable film of the model" } }));
}

/** What was taken for the subject; only where a background was removed. */
function cutoutView(files) {
  const cutouts = files.filter((file) => file.kind === "cutout" && file.isHere);
  return cutouts.length ? view("Cut-out", ...cutouts.map((file) => make("img", { src: file.url, alt: "Your image without its background" }))) : null;
}

function thumbnailView(files) {
  const file = files.find((one) => one.kind === "thumbnail" && one.isHere);
  return file && view("Thumbnail", make("img", { src: file.url, alt: "Thumbnail of the model" }));
}

// The notice of a draft begins the warning; here it has a place of its own.
function showWarning({ warning, meta }) {
  at("draft").hidden = !meta.draft;
  at("draft-text").textContent = meta.draft_notice ?? "";
  const rest = meta.draft_notice ? warning.replace(meta.draft_notice, "") : warning;
  at("warning").textContent = rest.trim();
}

function showFacts(body, files) {
  const faces = files.find((file) => file.kind === "model")?.faces;
  const facts = [
    ["Time", `${body.generationTime} s`],
    ["Engine", body.meta.engine],
    ["Faces", faces ? faces.toLocaleString("en") : ""],
    ["Seed", body.meta.seed],
    ["Detail", body.meta.resolution],
    ["Cut-out", cutoutFact(body.meta)],
    ["Job", body.id],
    ["Files end", ends(body.expires_at)],
  ];
  at("facts").replaceChildren(...facts.filter(([, value]) => value !== undefined && value !== null && value !== "").map(([name, value]) => make("div", {}, make("dt", { textContent: name }), make("dd", { textContent: value }))));
}

/** A time as people write it, "" where there is none. */
export const ends = (time) => (time ? new Date(time).toLocaleString("en", { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", hourCycle: "h23" }) : "");

/** The lowest confidence in the removed backgrounds, in percent; "" where none was removed or a model did it. */
function cutoutFact(meta) {
  const known = (meta.cutout_confidence ?? []).filter((one) => one !== null);
  return known.length ? `${Math.round(100 * Math.min(...known))} % sure` : "";
}

function fileLink(file, name) {
  const what = file.kind === "model" && file.format === "glb" ? "Model, textured" : (KINDS[file.kind] ?? "File");
  const size = file.isHere ? (file.bytes === undefined ? "" : bytes(file.bytes)) : "in your bucket";
  const saved = saveName(file, name);
  const about = make("span", { className: "what" }, make("span", { textContent: what }), make("small", { textContent: size }));
  const properties = { href: file.url, download: saved, title: saved, aria: { label: `Download ${what.toLowerCase()}, ${file.format.toUpperCase()}` } };
  const link = make("a", properties, make("span", { className: "kind", textContent: file.format }), about, icon(DOWNLOAD));
  if (!file.isHere) Object.assign(link, { target: "_blank", rel: "noreferrer" });
  return make("li", {}, link);
}
