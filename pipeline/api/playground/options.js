// The form's options, made from the schema of a submit: a field that the contract gains appears by itself.
import { at, make } from "./dom.js";

const ELSEWHERE = new Set(["key", "image"]);
const UP_FRONT = ["output_format", "resolution", "texture_size", "render"];
const MOST_SEGMENTS = 4;
const MOST_SLIDER_STEPS = 5000;
const ABBREVIATIONS = { ss: "Structure", slat: "Latent" };

const readers = new Map();

/** Put a control for every field of the schema on the page. */
export function showOptions(fields) {
  const others = Object.keys(fields).filter((name) => !ELSEWHERE.has(name) && !UP_FRONT.includes(name));
  at("options").append(...UP_FRONT.filter((name) => name in fields).map((name) => control(name, fields[name])));
  at("more-options").append(...others.map((name) => control(name, fields[name])));
  at("more").addEventListener("input", countChanged);
}

/** The options that differ from their defaults, as the API takes them. */
export function options() {
  return Object.fromEntries([...readers].map(([name, read]) => [name, read()]).filter(([, value]) => value !== undefined));
}

/** Several images are several views: the switch shows it, and only the number of images changes it. */
export function showMultiImage(isForced) {
  const input = at("option-multi_image");
  if (!input) return;
  if (isForced !== input.disabled) input.checked = isForced;
  input.disabled = isForced;
  countChanged();
}

const title = (name) => {
  const [first, ...rest] = name.split("_");
  return [ABBREVIATIONS[first] ?? first[0].toUpperCase() + first.slice(1), ...rest].join(" ");
};

function countChanged() {
  const count = [...at("more-options").querySelectorAll("[data-field]")].filter((one) => readers.get(one.dataset.field)() !== undefined).length;
  at("changed").textContent = count ? `${count} changed` : "";
}

function control(name, field) {
  const kind = field.anyOf ? field.anyOf[0] : field;
  const id = `option-${name}`;
  const heading = () => [make("span", { textContent: title(name) }), make("span", { className: "api-name", textContent: name })];
  const hint = make("small", { id: `${id}-hint` }, ...sentence(field.description));
  const problem = make("p", { id: `${id}-problem`, className: "problem", data: { for: name } });
  const described = { describedby: `${hint.id} ${problem.id}` };

  if (kind.enum && kind.enum.length <= MOST_SEGMENTS && !field.anyOf) {
    const radios = kind.enum.map((word) => make("input", { type: "radio", name, value: word, checked: word === field.default }));
    const segments = make("div", { className: "segments" }, ...radios.map((radio) => make("label", {}, radio, make("span", { textContent: radio.value }))));
    readers.set(name, () => given(radios.find((radio) => radio.checked)?.value, field.default));
    return make("fieldset", { className: "field", data: { field: name }, aria: described }, make("legend", {}, ...heading()), segments, hint, problem);
  }
  const label = make("label", { htmlFor: id }, ...heading());
  if (kind.type === "boolean") {
    const input = make("input", { type: "checkbox", id, name, checked: Boolean(field.default), aria: { role: "switch", ...described } });
    readers.set(name, () => given(input.checked, Boolean(field.default)));
    return make("div", { className: "field switch", data: { field: name } }, label, input, hint, problem);
  }
  const inputs = kind.enum ? [choice(kind, field, id)] : kind.type === "integer" || kind.type === "number" ? number(kind, field, id) : [text(kind, field, id)];
  const input = inputs.at(-1);
  input.name = name;
  input.setAttribute("aria-describedby", described.describedby);
  readers.set(name, () => given(typed(input, kind), field.default ?? undefined));
  const holder = inputs.length > 1 ? make("div", { className: "slider" }, ...inputs) : input;
  return make("div", { className: "field", data: { field: name } }, label, holder, hint, problem);
}

const given = (value, usual) => (value === usual || value === "" ? undefined : value);

// A field's description as a sentence; what stands in backticks is code.
function sentence(description = "") {
  const words = description.replace(/ \(extension\)$/, "");
  const text = words && `${words[0].toUpperCase()}${words.slice(1)}.`;
  return text.split("`").map((part, place) => (place % 2 ? make("code", { textContent: part }) : part));
}

// What cannot be read as a number goes to the API as it is: the API says what is wrong with it.
function typed(input, kind) {
  const isNumber = kind.type === "integer" || kind.type === "number";
  return isNumber && input.value.trim() !== "" && Number.isFinite(Number(input.value)) ? Number(input.value) : input.value;
}

function choice(kind, field, id) {
  const words = field.anyOf ? ["", ...kind.enum] : kind.enum;
  const select = make("select", { id }, ...words.map((word) => new Option(word || "as the service decides", word)));
  select.value = field.default ?? "";
  return select;
}

function number(kind, field, id) {
  const step = kind.type === "integer" ? 1 : (kind.maximum - kind.minimum) / 100 < 0.01 ? 0.01 : 0.1;
  const entry = make("input", { id, type: "text", inputMode: kind.type === "integer" ? "numeric" : "decimal", autocomplete: "off", value: field.default ?? "" });
  if (kind.minimum === undefined || kind.maximum === undefined || (kind.maximum - kind.minimum) / step > MOST_SLIDER_STEPS * 3) return [entry];
  const slider = make("input", { type: "range", min: kind.minimum, max: kind.maximum, step, value: field.default ?? kind.minimum });
  // The entry beside it says the same to a keyboard and a screen reader.
  slider.tabIndex = -1;
  slider.setAttribute("aria-hidden", "true");
  slider.addEventListener("input", () => (entry.value = slider.value));
  entry.addEventListener("input", () => (slider.value = entry.value));
  entry.addEventListener("keydown", (event) => {
    const by = { ArrowUp: step, ArrowDown: -step, PageUp: step * 10, PageDown: -step * 10 }[event.key];
    if (!by || !Number.isFinite(Number(entry.value))) return;
    event.preventDefault();
    const moved = Math.min(kind.maximum, Math.max(kind.minimum, Number(entry.value) + by));
    entry.value = slider.value = String(Number(moved.toFixed(4)));
    entry.dispatchEvent(new Event("input", { bubbles: true }));
  });
  return [slider, entry];
}

function text(kind, field, id) {
  return make("input", { id, type: kind.format === "uri" ? "url" : "text", autocomplete: "off", spellcheck: false, value: field.default ?? "", placeholder: field.default === null ? "not given" : "" });
}
