// The images of the next job: chosen, dropped or pasted, in the order of the views, with the angles of the views.
import { at, icon, make } from "./dom.js";
import { shrink } from "./shrink.js";

const EARLIER = "M15 6l-6 6 6 6";
const LATER = "M9 6l6 6-6 6";
const REMOVE = "M6 6l12 12M18 6L6 18";
const ANGLES = ["front", "right", "back", "left", "top", "bottom"];
const USUAL_ANGLES = { 2: ["front", "back"], 3: ["front", "right", "back"] };

const images = [];
let onChange = () => {};
let areAnglesStated = false;
let areAnglesUsed = true;
let reading = Promise.resolve();

/** The `image` field of the request: one image, or a list of images. */
export const image = () => (images.length > 1 ? images.map((one) => one.uri) : images[0]?.uri);

/** The `view_angles` field: one angle for each of several images, undefined where the service is to guess. */
export const viewAngles = () => (images.length > 1 && areAnglesStated && areAnglesUsed ? images.map((one) => one.angle) : undefined);

/** Names of the files, for code that reads them again; an address stays what it is. */
export const sources = () => images.map(({ name, address }) => ({ name, address }));

/** A URL with which the page can show the first image, "" where there is none. */
export const preview = () => images[0]?.preview ?? "";

/** The name of the first image. */
export const firstName = () => images[0]?.name ?? "";

export const count = () => images.length;

/** Resolves when every image that was given has been read. */
export const allRead = () => reading;

/** Accept images from anywhere on the page. */
export function watchImages(changed) {
  onChange = changed;
  at("choose").addEventListener("click", () => at("images").click());
  at("images").addEventListener("change", async (event) => {
    await add([...event.target.files]);
    event.target.value = "";
  });
  at("sample").addEventListener("click", async () => {
    const content = await (await fetch(new URL("sample.png", import.meta.url))).blob();
    await add([new File([content], "lighthouse.png", { type: "image/png" })]);
    at("submit").focus();
  });
  document.addEventListener("paste", (event) => {
    const isTyping = event.target instanceof Element && event.target.matches("input, select, textarea");
    const address = event.clipboardData.getData("text/plain").trim();
    if (event.clipboardData.files.length) add([...event.clipboardData.files]);
    else if (!isTyping && /^https?:\/\/\S+$/.test(address)) addAddress(address);
  });
  watchDrops();
}

/** Whether the chosen engine makes use of the angles of views. */
export function setAnglesUsed(isUsed) {
  if (isUsed === areAnglesUsed) return;
  areAnglesUsed = isUsed;
  show();
}

function watchDrops() {
  let depth = 0;
  const hasFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  const mark = (by) => {
    depth = by === 0 ? 0 : Math.max(0, depth + by);
    document.body.classList.toggle("dragging", depth > 0);
  };
  document.addEventListener("dragenter", (event) => hasFiles(event) && mark(1));
  document.addEventListener("dragleave", (event) => hasFiles(event) && mark(-1));
  document.addEventListener("dragover", (event) => hasFiles(event) && event.preventDefault());
  document.addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    mark(0);
    add([...event.dataTransfer.files]);
  });
}

// Every chosen file is sent: the API checks whether it is an image. One after another, so that they keep their order.
function add(files) {
  reading = reading.then(async () => {
    for (const file of files) {
      const { blob, note } = await shrink(file);
      images.push({ name: file.name || "image.png", uri: await asDataUri(blob), preview: URL.createObjectURL(blob), note, angle: unusedAngle() });
    }
    changed();
  });
  return reading;
}

function addAddress(address) {
  const { host, pathname } = new URL(address);
  const name = pathname.split("/").pop() || host;
  images.push({ name, uri: address, address, preview: "", note: "", angle: unusedAngle() });
  changed();
}

const unusedAngle = () => ANGLES.find((angle) => !images.some((one) => one.angle === angle)) ?? "front";

function asDataUri(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

function changed() {
  show();
  onChange();
}

function show() {
  at("views").replaceChildren(...images.map(tile));
  at("angles-hint").hidden = images.length < 2 || !areAnglesUsed;
  at("shrunk").textContent = images.map((one) => one.note && (images.length > 1 ? `${one.name}: ${one.note}` : one.note)).filter(Boolean).join(". ");
  document.body.classList.toggle("has-images", images.length > 0);
  at("choose-text").textContent = images.length ? "Add another view" : "Choose, drop or paste an image";
}

function tile(image, place) {
  const name = images.length > 1 ? `View ${place + 1}` : "The image";
  const blank = make("span", { className: "blank", textContent: image.address ? "URL" : "no preview" });
  const shown = image.preview ? make("img", { src: image.preview, alt: `${name}: ${image.name}`, on: { error: () => shown.replaceWith(blank) } }) : blank;
  const act = (words, path, work, isOff = false) =>
    make("button", { type: "button", disabled: isOff, aria: { label: `${words} ${name.toLowerCase()}` }, on: { click: work } }, icon(path));
  const acts = make("div", { className: "acts" });
  const off = act("Remove", REMOVE, () => remove(place));
  off.className = "off";
  if (images.length > 1) {
    acts.append(act("Move earlier", EARLIER, () => move(place, place - 1), place === 0));
    acts.append(act("Move later", LATER, () => move(place, place + 1), place === images.length - 1));
  }
  const angle = images.length > 1 && areAnglesUsed ? [angleChoice(image, name)] : [];
  return make("li", {}, shown, make("span", { className: "name", textContent: images.length > 1 ? `${place + 1} · ${image.name}` : image.name }), ...angle, acts, off);
}

// The API takes an angle for every view or for none, so the first choice states all, and "auto" takes all back.
function angleChoice(image, name) {
  const words = ["auto", ...ANGLES];
  const select = make("select", { aria: { label: `Taken from: ${name.toLowerCase()}` } }, ...words.map((word) => new Option(word, word)));
  select.value = areAnglesStated ? image.angle : "auto";
  select.addEventListener("change", () => {
    if (select.value !== "auto") {
      if (!areAnglesStated) (USUAL_ANGLES[images.length] ?? ANGLES).forEach((angle, place) => images[place] && (images[place].angle = angle));
      image.angle = select.value;
    }
    areAnglesStated = select.value !== "auto";
    const place = images.indexOf(image);
    show();
    at("views").children[place].querySelector("select").focus();
  });
  return select;
}

function move(from, to) {
  images.splice(to, 0, ...images.splice(from, 1));
  changed();
  const [earlier, later] = at("views").children[to].querySelectorAll("button");
  const target = to < from ? earlier : later;
  (target.disabled ? (to < from ? later : earlier) : target).focus();
}

function remove(place) {
  URL.revokeObjectURL(images[place].preview);
  images.splice(place, 1);
  changed();
  (at("views").children[Math.min(place, images.length - 1)]?.querySelector(".off") ?? at("choose")).focus();
}
