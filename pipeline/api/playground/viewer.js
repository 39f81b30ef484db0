// A model on the page: Google's model-viewer with its buttons, augmented reality, and a message where loading fails.
import { at, make } from "./dom.js";

export const STAYS_STILL = matchMedia("(prefers-reduced-motion: reduce)");
const LOST = "The model cannot be loaded. The connection may be gone, or the link has ended.";
const ATTRIBUTES = {
  loading: "eager",
  alt: "The model made from your image",
  "camera-controls": "",
  "touch-action": "pan-y",
  "shadow-intensity": "0.9",
  "shadow-softness": "0.8",
  "interaction-prompt": "none",
  "auto-rotate-delay": "600",
  // Phones offer augmented reality: WebXR or Scene Viewer on Android, Quick Look on iOS.
  ar: "",
  "ar-modes": "webxr scene-viewer quick-look",
};

let viewerModule;
/** Load the viewer while there is something else to wait for; a load that failed is tried again by the next call. */
export function loadViewer() {
  viewerModule ??= import("./model-viewer.min.js").then(allowMeshopt, (error) => {
    viewerModule = undefined;
    throw error;
  });
  return viewerModule;
}

// model-viewer contains the decoder of meshopt, but uses it only once a script from a stated location is loaded.
function allowMeshopt() {
  customElements.get("model-viewer").meshoptDecoderLocation = new URL("./meshopt.js", import.meta.url).href;
}

/** Show a GLB in a panel. `usdz` is the same model for iOS, where the service has made one. */
export async function showModel(panel, url, usdz, attempt = 1) {
  const again = () => showModel(panel, url, usdz, attempt + 1);
  at("tools").hidden = true;
  try {
    await loadViewer();
  } catch {
    return showLoss(panel, again);
  }
  const element = make("model-viewer", { aria: { label: "The model; turn it with the arrow keys" } });
  for (const [name, value] of Object.entries({ ...ATTRIBUTES, ...(usdz ? { "ios-src": usdz } : {}) })) element.setAttribute(name, value);
  element.append(make("button", { type: "button", slot: "ar-button", className: "quiet ar", textContent: "View in your room" }));
  element.addEventListener("error", (event) => event.detail?.type === "loadfailure" && showLoss(panel, again));
  // model-viewer keeps failed loads too, by their URL; the fragment is not sent.
  element.setAttribute("src", attempt > 1 ? `${url}#${attempt}` : url);
  panel.replaceChildren(element);
  wireTools(element);
  at("tools").hidden = panel.hidden;
}

/** A message in place of a model, with a button where something can be done. */
export function showMessage(panel, text, action) {
  const button = action ? [make("button", { type: "button", className: "quiet", textContent: action.text, on: { click: action.work } })] : [];
  panel.replaceChildren(make("div", { className: "message", aria: { role: "status" } }, make("p", { textContent: text }), ...button));
  at("tools").hidden = true;
}

const showLoss = (panel, again) => showMessage(panel, LOST, { text: "Try again", work: again });

function wireTools(element) {
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
}
