// The result of a job: the model in a viewer, the turntable video, the thumbnail, the files.
import { at, icon, make, tabs } from "./dom.js";
import { ROOT } from "./jobs.js";

const DOWNLOAD = "M12 4v11m0 0l-4.5-4.5M12 15l4.5-4.5M5 20h14";
const IMAGES = ["png", "jpg", "jpeg", "webp"];
const KINDS = { glb: "Model, textured", obj: "Model", stl: "Model", ply: "Model", mtl: "Material", mp4: "Turntable", png: "Image" };
export const STAYS_STILL = matchMedia("(prefers-reduced-motion: reduce)");

const ending = (url) => new URL(url).pathname.split(".").pop().toLowerCase();
const nameOf = (url) => decodeURIComponent(new URL(url).pathname.split("/").pop());

// The service may be reached under another name than the one it gives out; its own files are at this page's as well.
const local = (url) => {
  const file = new URL(url).pathname.match(/\/files\/[^/]+\/[^/]+$/);
  return file ? ROOT + file[0] : url;
};
const isHere = (url) => new URL(url).origin === location.origin;

let viewerModule;
/** Load the viewer while there is something else to wait for. */
export const loadViewer = () => (viewerModule ??= import("./model-viewer.min.js"));

/** Show the body of a job that succeeded. */
export async function showResult(body) {
  const output = body.output.map(local);
  const extras = body.extra_assets.map(local);
  const views = [modelView(output), turntableView(output), cutoutView(extras), thumbnailView(extras)].filter(Boolean);
  await loadViewer();
  at("panels").replaceChildren(...views.map((view, place) => {
    view.panel.id = `view-${place}`;
    return view.panel;
  }));
  at("tabs").replaceChildren(...views.map((view, place) => make("button", { type: "button", textContent: view.name, aria: { role: "tab", controls: `view-${place}` } })));
  tabs(at("tabs"), (chosen) => {
    views.forEach((view, place) => (view.panel.hidden = place !== chosen));
    at("tools").hidden = !views[chosen].panel.querySelector("model-viewer");
  });
  at("tabs").hidden = views.length < 2;
  at("warning").textContent = body.warning;
  showFacts(body);
  at("files").replaceChildren(...[...output, ...extras].map(fileLink));
}

function modelView(output) {
  const url = output.find((one) => ending(one) === "glb");
  const panel = make("div", { aria: { role: "tabpanel", label: "Model" } });
  if (!url) panel.append(make("p", { textContent: `A ${ending(output[0]).toUpperCase()} cannot be turned here; the files below are complete.` }));
  else if (!isHere(url)) panel.append(make("p", { textContent: "The model lies in your bucket, where this page does not read. With the option “temp” it can be turned here." }));
  else panel.append(viewer(url));
  return { name: "Model", panel };
}

function viewer(url) {
  const element = make("model-viewer", { aria: { label: "The model; turn it with the arrow keys" } });
  const attributes = { src: url, loading: "eager", alt: "The model made from your image", "camera-controls": "", "touch-action": "pan-y", "shadow-intensity": "0.9", "shadow-softness": "0.8", "interaction-prompt": "none", "auto-rotate-delay": "600" };
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  const turn = (isOn) => {
    element.toggleAttribute("auto-rotate", isOn);
    at("rotate").setAttribute("aria-pressed", String(isOn));
  };
  turn(!STAYS_STILL.matches);
  at("rotate").onclick = () => turn(!element.hasAttribute("auto-rotate"));
  at("reset").onclick = () => {
    element.resetTurntableRotation();
    element.cameraOrbit = "0deg 75deg 105%";
    element.fieldOfView = "auto";
    element.jumpCameraToGoal();
  };
  return element;
}

function turntableView(output) {
  const url = output.find((one) => ending(one) === "mp4");
  if (!url || !isHere(url)) return null;
  const film = make("video", { src: url, controls: true, loop: true, muted: true, playsInline: true, autoplay: !STAYS_STILL.matches, aria: { label: "Turntable film of the model" } });
  return { name: "Turntable", panel: make("div", { aria: { role: "tabpanel", label: "Turntable" } }, film) };
}

const isCutout = (url) => nameOf(url).endsWith("_cutout.png");

/** What was taken for the subject; only where a background was removed. */
function cutoutView(extras) {
  const urls = extras.filter((url) => isCutout(url) && isHere(url));
  if (!urls.length) return null;
  const images = urls.map((url) => make("img", { src: url, alt: "Your image without its background" }));
  return { name: "Cut-out", panel: make("div", { aria: { role: "tabpanel", label: "Cut-out" } }, ...images) };
}

function thumbnailView(extras) {
  const url = extras.find((one) => IMAGES.includes(ending(one)) && !isCutout(one));
  if (!url || !isHere(url)) return null;
  return { name: "Thumbnail", panel: make("div", { aria: { role: "tabpanel", label: "Thumbnail" } }, make("img", { src: url, alt: "Thumbnail of the model" })) };
}

function showFacts(body) {
  const facts = [["Time", `${body.generationTime} s`], ["Engine", body.meta.engine], ["Seed", body.meta.seed], ["Resolution", body.meta.resolution], ["Cut-out", cutoutFact(body.meta)], ["Call", body.id]];
  at("facts").replaceChildren(...facts.filter(([, value]) => value !== undefined && value !== "").map(([name, value]) => make("div", {}, make("dt", { textContent: name }), make("dd", { textContent: value }))));
}

/** The lowest confidence in the removed backgrounds, in percent; "" where none was removed or a model did it. */
function cutoutFact(meta) {
  const known = (meta.cutout_confidence ?? []).filter((one) => one !== null);
  return known.length ? `${Math.round(100 * Math.min(...known))} % sure` : "";
}

function fileLink(url) {
  const kind = ending(url);
  const name = nameOf(url);
  const what = isCutout(url) ? "Cut-out" : name.includes("thumbnail") ? "Thumbnail" : (KINDS[kind] ?? "File");
  const size = make("small", { textContent: isHere(url) ? "…" : "in your bucket" });
  const link = make("a", { href: url, download: name, title: name, aria: { label: `Download ${what.toLowerCase()}, ${kind.toUpperCase()}` } }, make("span", { className: "kind", textContent: kind }), make("span", { className: "what" }, what, size), icon(DOWNLOAD));
  if (isHere(url)) fetch(url, { method: "HEAD" }).then((answer) => (size.textContent = bytes(Number(answer.headers.get("content-length")))), () => (size.textContent = ""));
  else Object.assign(link, { target: "_blank", rel: "noreferrer" });
  return make("li", {}, link);
}

const bytes = (count) => (count < 1000 ? `${count} B` : count < 1e6 ? `${(count / 1e3).toFixed(0)} kB` : `${(count / 1e6).toFixed(1)} MB`);
