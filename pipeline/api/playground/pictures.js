// The pictures of the next call: chosen, dropped or pasted, in the order of the views.
import { at, icon, make } from "./dom.js";

const EARLIER = "M15 6l-6 6 6 6";
const LATER = "M9 6l6 6-6 6";
const REMOVE = "M6 6l12 12M18 6L6 18";

const pictures = [];
let onChange = () => {};

/** What the API is sent: one picture, or a list of them. */
export const image = () => (pictures.length > 1 ? pictures.map((one) => one.uri) : pictures[0]?.uri);

/** Names of the files, for code that reads them again; an address stays what it is. */
export const sources = () => pictures.map(({ name, address }) => ({ name, address }));

/** An address under which the page may show the first picture, "" where there is none. */
export const preview = () => pictures[0]?.preview ?? "";

export const count = () => pictures.length;

/** Listen for pictures from everywhere on the page. */
export function watchPictures(changed) {
  onChange = changed;
  at("choose").addEventListener("click", () => at("pictures").click());
  at("pictures").addEventListener("change", async (event) => {
    await add(event.target.files);
    event.target.value = "";
  });
  at("sample").addEventListener("click", async () => {
    const content = await (await fetch("/playground/sample.png")).blob();
    await add([new File([content], "lighthouse.png", { type: "image/png" })]);
    at("submit").focus();
  });
  document.addEventListener("paste", (event) => {
    const isTyping = event.target instanceof Element && event.target.matches("input, select, textarea");
    const address = event.clipboardData.getData("text/plain").trim();
    if (event.clipboardData.files.length) add(event.clipboardData.files);
    else if (!isTyping && /^https?:\/\/\S+$/.test(address)) addAddress(address);
  });
  watchDrops();
}

function watchDrops() {
  let depth = 0;
  const hasFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  const show = (by) => {
    depth = by === 0 ? 0 : Math.max(0, depth + by);
    document.body.classList.toggle("dragging", depth > 0);
  };
  document.addEventListener("dragenter", (event) => hasFiles(event) && show(1));
  document.addEventListener("dragleave", (event) => hasFiles(event) && show(-1));
  document.addEventListener("dragover", (event) => hasFiles(event) && event.preventDefault());
  document.addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    show(0);
    add(event.dataTransfer.files);
  });
}

// Whatever was chosen is sent: whether it is a picture is for the API to say.
async function add(files) {
  for (const file of files) {
    pictures.push({ name: file.name || "picture.png", uri: await asDataUri(file), preview: URL.createObjectURL(file) });
  }
  changed();
}

function addAddress(address) {
  pictures.push({ name: new URL(address).host, uri: address, address, preview: "" });
  changed();
}

function asDataUri(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

function changed() {
  at("views").replaceChildren(...pictures.map(tile));
  document.body.classList.toggle("has-pictures", pictures.length > 0);
  at("choose-text").textContent = pictures.length ? "Add another view" : "Choose, drop or paste a picture";
  onChange();
}

function tile(picture, place) {
  const name = pictures.length > 1 ? `View ${place + 1}` : "The picture";
  const blank = make("span", { className: "blank", textContent: picture.address ? "URL" : "no preview" });
  const shown = picture.preview ? make("img", { src: picture.preview, alt: `${name}: ${picture.name}`, on: { error: () => shown.replaceWith(blank) } }) : blank;
  const act = (words, path, work, isOff = false) =>
    make("button", { type: "button", disabled: isOff, aria: { label: `${words} ${name.toLowerCase()}` }, on: { click: work } }, icon(path));
  const acts = make("div", { className: "acts" });
  const off = act("Remove", REMOVE, () => remove(place));
  off.className = "off";
  if (pictures.length > 1) {
    acts.append(act("Move earlier", EARLIER, () => move(place, place - 1), place === 0));
    acts.append(act("Move later", LATER, () => move(place, place + 1), place === pictures.length - 1));
  }
  return make("li", {}, shown, make("span", { className: "name", textContent: pictures.length > 1 ? `${place + 1} · ${picture.name}` : picture.name }), acts, off);
}

function move(from, to) {
  pictures.splice(to, 0, ...pictures.splice(from, 1));
  changed();
  const [earlier, later] = at("views").children[to].querySelectorAll("button");
  const wished = to < from ? earlier : later;
  (wished.disabled ? (to < from ? later : earlier) : wished).focus();
}

function remove(place) {
  URL.revokeObjectURL(pictures[place].preview);
  pictures.splice(place, 1);
  changed();
  (at("views").children[Math.min(place, pictures.length - 1)]?.querySelector(".off") ?? at("choose")).focus();
}
