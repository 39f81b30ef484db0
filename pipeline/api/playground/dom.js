export const at = (id) => document.getElementById(id);

/** An element with properties and children; `data` and `aria` are objects, `on` holds listeners. */
export function make(tag, { data = {}, aria = {}, on = {}, ...properties } = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  Object.assign(element.dataset, data);
  for (const [name, value] of Object.entries(aria)) element.setAttribute(name === "role" ? name : `aria-${name}`, value);
  for (const [name, listener] of Object.entries(on)) element.addEventListener(name, listener);
  element.append(...children);
  return element;
}

/** A line drawing of one path on a field of 24 by 24. */
export function icon(path) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "path");
  line.setAttribute("d", path);
  svg.append(line);
  return svg;
}

/** One of several tabs is chosen by click, arrows, Home or End; `choose` receives its index. */
export function tabs(list, choose) {
  const select = (chosen, focus) => {
    [...list.children].forEach((tab, place) => {
      tab.setAttribute("aria-selected", String(place === chosen));
      tab.tabIndex = place === chosen ? 0 : -1;
      if (focus && place === chosen) tab.focus();
    });
    choose(chosen);
  };
  list.onclick = (event) => {
    const chosen = [...list.children].indexOf(event.target.closest("[role=tab]"));
    if (chosen >= 0) select(chosen, false);
  };
  list.onkeydown = (event) => {
    const all = [...list.children];
    const here = all.indexOf(document.activeElement);
    const next = { ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: all.length - 1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    select((next + all.length) % all.length, true);
  };
  select(0, false);
}
