// The form's options, made from the schema of a submit: a field that the contract gains appears by itself.
import { at, make } from "./dom.js";
import { EMPTY, HINTS, TITLES } from "./texts.js";

const ELSEWHERE = new Set(["key", "image", "prompt", "guidance_scale", "num_inference_steps"]); // the last two are older names
const UP_FRONT = ["engine", "output_format", "resolution", "texture_size", "render"];
const MOST_SEGMENTS = 6;
const MOST_SLIDER_STEPS = 15000;
const MOST_SLIDER_RATIO = 100000; // of its ends: on a wider range, all usual values lie at one end

const readers = new Map();
let engines = { default: "", engines: [] };
let imageCount = 0;
let madeFrom = "image";
let onRefresh = () => {};

/** Prepare the options: `offered` is what the service says of its engines; `refreshed` is called when other fields have an effect than before. */
export function watchOptions(offered, refreshed) {
  engines = offered;
  onRefresh = refreshed;
  at("job").addEventListener("input", refresh);
}

/** Put a control for every field of the schema on the page; `made` is what the model is made from, image or text. */
export function showOptions(fields, made) {
  madeFrom = made;
  readers.clear();
  at("options").replaceChildren();
  at("more-options").replaceChildren();
  const others = Object.keys(fields).filter((name) => !ELSEWHERE.has(name) && !UP_FRONT.includes(name));
  at("options").append(...UP_FRONT.filter((name) => name in fields).map((name) => control(name, fields[name])));
  at("more-options").append(...others.map((name) => control(name, fields[name])));
  refresh();
}

/** Whether an engine that is offered makes models from a text. */
export const takesText = () => engines.engines.some((one) => one.offered && one.inputs.includes("text"));

/** The options that have an effect and differ from their defaults, as the API takes them. */
export function options() {
  const shown = [...readers].filter(([name]) => !field(name).hidden);
  return Object.fromEntries(shown.map(([name, read]) => [name, read()]).filter(([, value]) => value !== undefined));
}

/** Tell the options how many images the next job has: several are several views. */
export function setImageCount(count) {
  imageCount = count;
  const input = at("option-multi_image");
  if (!input) return;
  const isForced = count > 1;
  if (isForced !== input.disabled) input.checked = isForced;
  input.disabled = isForced;
  refresh();
}

/** Whether the chosen engine makes use of a field. */
export const isUsed = (name) => !engineEntry()?.ignores.includes(name);

const field = (name) => document.querySelector(`[data-field="${CSS.escape(name)}"]`);
const usable = () => engines.engines.filter((one) => one.inputs.includes(madeFrom));
// The service's own choice for a request that names none: its default engine, else the first offered one that fits.
const usualEngine = () => (usable().find((one) => one.name === engines.default) ?? usable().find((one) => one.offered))?.name;
const engineEntry = () => engines.engines.find((one) => one.name === (at("option-engine")?.value || usualEngine()));

// Hidden are what the engine ignores, and what says something about views where there are none.
function refresh() {
  const isSheet = imageCount < 2 && Boolean(at("option-multi_image")?.checked);
  const isOff = { view_angles: !isSheet, multi_image_mode: !isSheet && imageCount < 2 };
  for (const name of readers.keys()) field(name).hidden = Boolean(isOff[name]) || !isUsed(name);
  showEngine();
  const changed = [...at("more-options").children].filter((one) => !one.hidden && readers.get(one.dataset.field)() !== undefined).length;
  at("changed").textContent = changed ? `${changed} changed` : "";
  onRefresh();
}

function showEngine() {
  const entry = engineEntry();
  const hint = at("option-engine-hint");
  if (!entry || !hint) return;
  const views = madeFrom === "text" ? "from a text" : entry.max_views > 1 ? `up to ${entry.max_views} views` : "one view";
  const absent = usable().filter((one) => !one.offered).map((one) => one.name);
  const needs = entry.needs ? ` Runs on ${entry.needs}.` : "";
  hint.textContent = `${entry.summary[0].toUpperCase()}${entry.summary.slice(1)}; ${views}.${needs}${absent.length ? ` Not offered here: ${absent.join(", ")}.` : ""}`;
}

const title = (name) => TITLES[name] ?? `${name[0].toUpperCase()}${name.slice(1).replaceAll("_", " ")}`;

function control(name, schema) {
  const kind = schema.anyOf ? schema.anyOf[0] : schema;
  const id = `option-${name}`;
  const heading = () => [make("span", { textContent: title(name) }), make("span", { className: "api-name", textContent: name })];
  const hint = make("small", { id: `${id}-hint` }, ...sentence(HINTS[name] ?? schema.description));
  const problem = make("p", { id: `${id}-problem`, className: "problem", data: { for: name } });
  const described = { describedby: `${hint.id} ${problem.id}` };

  if (kind.enum && kind.enum.length <= MOST_SEGMENTS && !schema.anyOf) {
    const radios = kind.enum.map((word) => make("input", { type: "radio", name, value: word, checked: word === schema.default }));
    const segments = make("div", { className: "segments" }, ...radios.map((radio) => make("label", {}, radio, make("span", { textContent: radio.value }))));
    readers.set(name, () => given(radios.find((radio) => radio.checked)?.value, schema.default));
    return make("fieldset", { className: "field", data: { field: name }, aria: described }, make("legend", {}, ...heading()), segments, hint, problem);
  }
  const label = make("label", { htmlFor: id }, ...heading());
  if (kind.type === "boolean") {
    const input = make("input", { type: "checkbox", id, name, checked: Boolean(schema.default), aria: { role: "switch", ...described } });
    readers.set(name, () => given(input.checked, Boolean(schema.default)));
    return make("div", { className: "field switch", data: { field: name } }, label, input, hint, problem);
  }
  const inputs = inputsOf(name, kind, schema, id);
  const input = inputs.at(-1);
  input.name = name;
  input.setAttribute("aria-describedby", described.describedby);
  readers.set(name, () => given(typed(input, kind), schema.default ?? undefined));
  const holder = inputs.length > 1 ? make("div", { className: "slider" }, ...inputs) : input;
  return make("div", { className: "field", data: { field: name } }, label, holder, hint, problem);
}

function inputsOf(name, kind, schema, id) {
  if (name === "engine" && engines.engines.length) return [engineChoice(id)];
  if (kind.enum) return [choice(kind, schema, id)];
  return kind.type === "integer" || kind.type === "number" ? number(name, kind, schema, id) : [text(name, kind, schema, id)];
}

const given = (value, usual) => (value === usual || value === "" ? undefined : value);

// A field's description as a sentence; what stands in backticks is code.
function sentence(description = "") {
  const words = description.replace(/ \(extension\)$/, "");
  const text = words && `${words[0].toUpperCase()}${words.slice(1)}${words.endsWith(".") ? "" : "."}`;
  return text.split("`").map((part, place) => (place % 2 ? make("code", { textContent: part }) : part));
}

// What cannot be read as a number goes to the API as it is: the API says what is wrong with it.
function typed(input, kind) {
  const isNumber = kind.type === "integer" || kind.type === "number";
  return isNumber && input.value.trim() !== "" && Number.isFinite(Number(input.value)) ? Number(input.value) : input.value;
}

// The default is sent as "not given": the service's operator may change it.
function engineChoice(id) {
  const select = make("select", { id });
  for (const one of usable()) {
    const option = new Option(one.offered ? one.name : `${one.name} (not offered here)`, one.name === usualEngine() ? "" : one.name);
    option.disabled = !one.offered;
    select.append(option);
  }
  select.value = "";
  return select;
}

function choice(kind, schema, id) {
  const words = schema.anyOf ? ["", ...kind.enum] : kind.enum;
  const select = make("select", { id }, ...words.map((word) => new Option(word || "as usual", word)));
  select.value = schema.default ?? "";
  return select;
}

function number(name, kind, schema, id) {
  const step = kind.type === "integer" ? 1 : (kind.maximum - kind.minimum) / 100 < 0.05 ? 0.01 : 0.1;
  const entry = make("input", { id, type: "text", inputMode: kind.type === "integer" ? "numeric" : "decimal", autocomplete: "off", value: schema.default ?? "", placeholder: EMPTY[name] ?? "" });
  if (kind.minimum === undefined || kind.maximum === undefined) return [entry];
  if ((kind.maximum - kind.minimum) / step > MOST_SLIDER_STEPS || (kind.minimum > 0 && kind.maximum / kind.minimum > MOST_SLIDER_RATIO)) return [entry];
  const slider = make("input", { type: "range", min: kind.minimum, max: kind.maximum, step });
  slider.value = schema.default ?? (kind.minimum + kind.maximum) / 2;
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

function text(name, kind, schema, id) {
  return make("input", { id, type: kind.format === "uri" ? "url" : "text", autocomplete: "off", spellcheck: false, value: schema.default ?? "", placeholder: schema.default === null ? (EMPTY[name] ?? "not given") : "" });
}
