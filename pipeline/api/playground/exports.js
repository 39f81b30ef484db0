// A finished job's files in another format, number of faces or texture size, without the engine.
import { at, make } from "./dom.js";

const SIZES = [512, 1024, 2048, 4096];
let fields = null;

/** Tell what an export takes; null where the service has none. `work` receives the fields that were chosen. */
export function watchExports(exportFields, work) {
  fields = exportFields;
  if (!fields) return;
  at("again-format").replaceChildren(...fields.output_format.enum.map((format) => new Option(format.toUpperCase(), format)));
  at("again-texture").replaceChildren(...SIZES.filter((size) => size <= fields.texture_size.maximum).map((size) => new Option(`${size} px`, size)));
  at("again").addEventListener("submit", (event) => {
    event.preventDefault();
    work(chosen());
  });
}

/** Whether the service makes files of the format. */
export const canMake = (format) => Boolean(fields?.output_format.enum.includes(format));

/** Begin with what a finished job has. */
export function offerExports(body) {
  at("again").hidden = !fields;
  at("again-problem").textContent = "";
  if (!fields) return;
  at("again-format").value = body.meta.output_format;
  at("again-faces").value = "";
  at("again-faces").placeholder = body.files.find((file) => file.kind === "model")?.faces ?? "as before";
  const size = String(body.meta.texture_size);
  if (![...at("again-texture").options].some((option) => option.value === size)) at("again-texture").append(make("option", { value: size, textContent: `${size} px` }));
  at("again-texture").value = size;
  at("again-texture").disabled = Boolean(body.meta.no_texture);
}

/** Show that files are being made, or why they cannot be. */
export function showExport({ isRunning = false, problem = "" }) {
  at("again-go").setAttribute("aria-disabled", String(isRunning));
  at("again-go").textContent = isRunning ? "Making them …" : "Make these files";
  at("again-problem").textContent = problem;
}

function chosen() {
  const faces = at("again-faces").value.trim();
  return {
    output_format: at("again-format").value,
    ...(faces ? { target_faces: Number.isFinite(Number(faces)) ? Number(faces) : faces } : {}),
    ...(at("again-texture").disabled ? {} : { texture_size: Number(at("again-texture").value) }),
  };
}
