// The files of a job: where this page can read them, and what they are called when they are saved.
import { ROOT } from "./jobs.js";

const FILE = /\/files\/([^/]+)\/([^/]+)$/;
const PREFIX = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}/;
const IMAGE_ENDING = /\.(png|jpe?g|webp|bmp|gif|tiff?|avif)$/i;
// An OBJ names its material by this name, and the material its texture.
const NAMED_BY_OTHERS = new Set(["material", "texture"]);

// The service may be reached under another name than the one it gives out; its own files are at this page's as well.
function localUrl(url) {
  const found = new URL(url).pathname.match(FILE);
  return found ? `${ROOT}/files/${found[1]}/${found[2]}` : url;
}

/** The files of a job that succeeded, with URLs for this page; `isHere` where the page may read them. */
export const filesOf = (body) => body.files.map((file) => ({ ...file, url: localUrl(file.url), isHere: isHere(localUrl(file.url)) }));

const isHere = (url) => new URL(url).origin === location.origin;

/** What a job is called: the name of its image without its ending, or its number. */
export function jobName(body) {
  const name = String(body.track_id ?? "").replace(IMAGE_ENDING, "").trim();
  return name || `job-${body.id}`;
}

/** The name to save a file under: after the image, with what follows the job's prefix in the file's own name. */
export function saveName(file, name) {
  const original = decodeURIComponent(new URL(file.url).pathname.split("/").pop());
  if (NAMED_BY_OTHERS.has(file.kind) || !PREFIX.test(original)) return original;
  return name.replace(/[^\p{L}\p{N} ._()-]+/gu, "_").slice(0, 120) + original.replace(PREFIX, "");
}

/** A link to a model on this page that needs no key: the link to the file is the permission, until it ends. */
export function shareLink(file, name) {
  const found = file.url.match(FILE);
  return found && file.isHere ? `${ROOT}/#view/${found[1]}/${found[2]}/${encodeURIComponent(name)}` : file.url;
}

/** The model that a share link shows; null where the address is no share link. Leads to files of this service alone. */
export function sharedFile(hash) {
  const found = hash.match(/^#view\/([\w.~=-]+)\/([\w.~-]+)\/([^/]*)$/);
  return found && { url: `${ROOT}/files/${found[1]}/${found[2]}`, name: decodeURIComponent(found[3]) || "model" };
}
