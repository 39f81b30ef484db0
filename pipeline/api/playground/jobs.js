// The API client of the page. The key is sent in a header, never in a URL.

/** The service's address without a slash at its end; a proxy may serve it below a path. */
export const ROOT = new URL("..", import.meta.url).href.slice(0, -1);
const V6 = "/api/v6/3d";
const SUBMIT_PATHS = { image: `${V6}/image_to_3d`, text: `${V6}/text_to_3d` };
const EXPORT_PATH = `${V6}/export/{call_id}`;
/** The address that a body is submitted to. */
export const submitTo = (body) => ROOT + SUBMIT_PATHS["prompt" in body ? "text" : "image"];
const ENTERPRISE = `${ROOT}/api/v1/enterprise/3d`;
const RECONNECT_PAUSES_MS = [300, 1000, 3000, 5000, 5000];
const NO_ANSWER = "The service does not answer. Is it still running?";

/** A refusal in the API's own words; `retryAfter` in seconds, 0 where it is not told. */
export class Refused extends Error {
  constructor(message, { status = 0, code = "", retryAfter = 0 } = {}) {
    super(message);
    Object.assign(this, { status, code, retryAfter });
  }
}

const headers = (key) => ({ "content-type": "application/json", authorization: `Bearer ${key}` });

function checked(body, status) {
  if (status >= 200 && status < 300 && body && body.status !== "error") return body;
  const { message = `The service answered ${status} without an explanation.`, error_code: code, retry_after: retryAfter } = body ?? {};
  throw new Refused(message, { status, code, retryAfter });
}

async function post(path, key, body, { more = {}, signal } = {}) {
  const answer = await fetch(path, { method: "POST", headers: { ...headers(key), ...more }, body: JSON.stringify(body), signal }).catch((error) => {
    throw error.name === "AbortError" ? error : new Refused(NO_ANSWER);
  });
  return checked(await answer.json().catch(() => null), answer.status);
}

/**
 * Submit without waiting; the body of the answer.
 * `onSent` receives the bytes that have left and all bytes; `signal` ends the request. XMLHttpRequest, because fetch
 * does not tell how much of a body has been sent.
 */
export function submit(key, body, { onSent = () => {}, signal } = {}) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", submitTo(body));
    for (const [name, value] of Object.entries({ ...headers(key), prefer: "wait=0" })) request.setRequestHeader(name, value);
    request.responseType = "json";
    request.upload.onprogress = ({ loaded, total }) => onSent(loaded, total);
    request.onabort = () => reject(new DOMException("The request was ended.", "AbortError"));
    request.onerror = () => reject(new Refused(NO_ANSWER));
    request.onload = () => {
      try {
        resolve(checked(request.response, request.status));
      } catch (error) {
        reject(error);
      }
    };
    signal?.addEventListener("abort", () => request.abort());
    request.send(JSON.stringify(body));
  });
}

/** Ask for a job to stop. */
export const cancel = (key, id) => post(`${ENTERPRISE}/cancel/${id}`, key, {});

/** The body about a job as it is now. */
export const fetchJob = (key, id, signal) => post(`${ROOT}${V6}/fetch/${id}`, key, {}, { more: { prefer: "wait=0" }, signal });

/** A page of the key's jobs, newest first: `{calls, next}`. */
export const list = (key, { limit, before }) => post(`${ENTERPRISE}/list`, key, { limit, ...(before ? { before } : {}) });

/** The files of a finished job in another format or size, as a job; the same `once` gives the same job. */
export function exportAgain(key, id, fields, once) {
  const more = { prefer: "wait=0", ...(once ? { "idempotency-key": once } : {}) };
  return post(ROOT + EXPORT_PATH.replace("{call_id}", id), key, fields, { more });
}

/** The fields of a submit of images, of one of a text and of an export (null where there is none), from the contract. */
export async function contract() {
  const { paths } = await (await fetch(`${ROOT}/openapi.json`)).json();
  const fields = (path) => paths[path]?.post.requestBody.content["application/json"].schema.properties ?? null;
  return { image: fields(SUBMIT_PATHS.image), text: fields(SUBMIT_PATHS.text), export: fields(EXPORT_PATH) };
}

/** The engines of the service: `{default, engines}`. */
export const engines = async () => checked(await (await fetch(`${ROOT}/engines`)).json(), 200);

/** Follow a job to its end: `onProgress` receives each event; returns the final body. Reconnects when a connection is lost. */
export async function follow(key, id, onProgress, signal) {
  for (let failures = 0; ; failures += 1) {
    try {
      const onEvent = (event) => {
        failures = 0;
        onProgress(event);
      };
      const body = await listen(key, id, onEvent, signal);
      if (body) return body;
    } catch (error) {
      if (error.name === "AbortError" || (error instanceof Refused && error.status >= 400 && error.status < 500)) throw error;
    }
    if (failures >= RECONNECT_PAUSES_MS.length) throw new Refused("The connection to the service was lost. The job continues; reload the page to follow it again.");
    await new Promise((resolve) => setTimeout(resolve, RECONNECT_PAUSES_MS[failures]));
  }
}

// EventSource cannot send a header, so the stream is read by hand.
async function listen(key, id, onProgress, signal) {
  const answer = await fetch(`${ENTERPRISE}/events/${id}`, { headers: headers(key), signal });
  if (!answer.ok) checked(await answer.json().catch(() => null), answer.status);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return null;
    text = (text + value).replaceAll("\r\n", "\n");
    const events = text.split("\n\n");
    text = events.pop();
    for (const event of events) {
      const message = Object.fromEntries(event.split("\n").map((line) => line.split(/: (.*)/s, 2)));
      if (message.event === "end") return JSON.parse(message.data);
      if (message.event === "progress") onProgress(JSON.parse(message.data));
    }
  }
}
