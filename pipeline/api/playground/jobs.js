// The API client of the page. The key is sent in a header, never in a URL.
/** The service's address without a slash at its end; a proxy may serve it below a path. */
export const ROOT = new URL("..", import.meta.url).href.slice(0, -1);
const SUBMIT_PATH = "/api/v6/3d/image_to_3d";
export const SUBMIT = ROOT + SUBMIT_PATH;
const ENTERPRISE = `${ROOT}/api/v1/enterprise/3d`;
const RECONNECT_PAUSES_MS = [300, 1000, 3000, 5000, 5000];

/** A refusal in the API's own words. */
export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

const headers = (key) => ({ "content-type": "application/json", authorization: `Bearer ${key}` });

async function post(path, key, body, more = {}) {
  let answer;
  try {
    answer = await fetch(path, { method: "POST", headers: { ...headers(key), ...more }, body: JSON.stringify(body) });
  } catch {
    throw new Refused("The service does not answer. Is it still running?", 0);
  }
  const said = await answer.json().catch(() => ({ message: `The service answered ${answer.status} without a word.` }));
  if (!answer.ok || said.status === "error") throw new Refused(said.message, answer.status);
  return said;
}

/** Submit without waiting; the body of the answer. */
export const submit = (key, body) => post(SUBMIT, key, body, { prefer: "wait=0" });

/** Ask for a job to stop. */
export const cancel = (key, id) => post(`${ENTERPRISE}/cancel/${id}`, key, {});

/** The fields of a submit, from the contract itself. */
export async function fields() {
  const contract = await (await fetch(`${ROOT}/openapi.json`)).json();
  return contract.paths[SUBMIT_PATH].post.requestBody.content["application/json"].schema.properties;
}

/** Follow a job to its end: `onProgress` receives each event; returns the final body. Reconnects when a connection is lost. */
export async function follow(key, id, onProgress) {
  for (let failures = 0; ; failures += 1) {
    try {
      const body = await listen(key, id, (event) => {
        failures = 0;
        onProgress(event);
      });
      if (body) return body;
    } catch (error) {
      if (error instanceof Refused && error.status >= 400 && error.status < 500) throw error;
    }
    if (failures >= RECONNECT_PAUSES_MS.length) throw new Refused("The connection to the service was lost.", 0);
    await new Promise((resolve) => setTimeout(resolve, RECONNECT_PAUSES_MS[failures]));
  }
}

// EventSource cannot send a header, so the stream is read by hand.
async function listen(key, id, onProgress) {
  const answer = await fetch(`${ENTERPRISE}/events/${id}`, { headers: headers(key) });
  if (!answer.ok) throw new Refused((await answer.json()).message, answer.status);
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
