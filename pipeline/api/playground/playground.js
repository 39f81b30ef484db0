// The playground: one call at a time, watched by server-sent events over fetch (EventSource cannot send a key).
const SUBMIT = "/api/v6/3d/image_to_3d";
const EVENTS = "/api/v1/enterprise/3d/events/";
const HIDDEN = new Set(["key", "image", "webhook", "track_id", "temp", "multi_image"]);
const at = (id) => document.getElementById(id);
let pictures = [];

const asDataUri = (file) =>
  new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });

async function choose(files) {
  pictures = await Promise.all([...files].filter((file) => file.type.startsWith("image/")).map(asDataUri));
  at("previews").replaceChildren(
    ...pictures.map((uri, number) => Object.assign(new Image(), { src: uri, alt: `View ${number + 1}` })),
  );
  at("drop-text").textContent = pictures.length > 1 ? `${pictures.length} views` : "One picture";
}

// Options come from the contract itself, so that a new field needs nothing here.
async function showOptions() {
  const schema = await (await fetch("/openapi.json")).json();
  const fields = schema.paths[SUBMIT].post.requestBody.content["application/json"].schema.properties;
  for (const [name, field] of Object.entries(fields)) {
    if (HIDDEN.has(name)) continue;
    const kind = field.anyOf ? field.anyOf[0] : field;
    let input;
    if (kind.enum) {
      input = document.createElement("select");
      const words = field.anyOf ? ["", ...kind.enum] : kind.enum;
      input.append(...words.map((word) => new Option(word || "default", word)));
      input.value = field.default ?? "";
    } else {
      input = document.createElement("input");
      if (kind.type === "boolean") {
        input.type = "checkbox";
        input.checked = Boolean(field.default);
      } else if (kind.type === "integer" || kind.type === "number") {
        input.type = "number";
        Object.assign(input, { min: kind.minimum, max: kind.maximum, step: kind.type === "integer" ? 1 : "any" });
        input.value = field.default;
      } else {
        input.value = field.default ?? "";
      }
    }
    input.name = name;
    input.dataset.default = input.type === "checkbox" ? String(input.checked) : input.value;
    const label = document.createElement("label");
    label.title = field.description ?? "";
    label.append(`${name.replaceAll("_", " ")} `, input);
    at("options").append(label);
  }
}

function options() {
  const given = {};
  for (const input of at("options").querySelectorAll("input, select")) {
    const value = input.type === "checkbox" ? input.checked : input.value;
    if (String(value) !== input.dataset.default && value !== "") given[input.name] = value;
  }
  return given;
}

function say(text, isRefused = false) {
  at("said").textContent = text;
  at("said").classList.toggle("refused", isRefused);
}

async function follow(id, key) {
  const answer = await fetch(EVENTS + id, { headers: { authorization: `Bearer ${key}` } });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the connection ended before the call did");
    text += value.replaceAll("\r\n", "\n");
    const events = text.split("\n\n");
    text = events.pop();
    for (const event of events) {
      const lines = Object.fromEntries(event.split("\n").map((line) => [line.split(": ", 1)[0], line.slice(line.indexOf(": ") + 2)]));
      if (!lines.data) continue;
      const body = JSON.parse(lines.data);
      if (lines.event === "end") return body;
      at("progress").value = body.progress;
      say(body.message);
    }
  }
}

function show(body) {
  at("progress").value = 100;
  say(`Done in ${body.generationTime} s. ${body.warning}`);
  const model = body.output.find((url) => url.endsWith(".glb"));
  at("viewer").hidden = !model;
  if (model) at("viewer").src = model;
  at("files").replaceChildren(
    ...[...body.output, ...body.extra_assets].map((url) => {
      const item = document.createElement("li");
      const link = Object.assign(document.createElement("a"), { href: url, textContent: url.split("/").pop(), download: "" });
      item.append(link);
      return item;
    }),
  );
}

function showSnippets(given) {
  const body = { key: "YOUR_KEY", image: "https://example.com/subject.png", ...given };
  const url = location.origin + SUBMIT;
  at("curl").textContent = `curl -X POST ${url} \\\n  -H 'content-type: application/json' \\\n  -d '${JSON.stringify(body)}'`;
  const python = JSON.stringify(body, null, 4).replace(/: true/g, ": True").replace(/: false/g, ": False");
  at("python").textContent = `import requests\n\nanswer = requests.post("${url}", json=${python})\nprint(answer.json())`;
  at("snippets").hidden = false;
}

async function run(event) {
  event.preventDefault();
  if (!pictures.length) return say("Choose a picture first.", true);
  const key = at("key").value;
  const button = event.target.querySelector("button[type=submit]");
  button.disabled = true;
  at("progress").hidden = false;
  at("progress").value = 0;
  say("Sending …");
  try {
    const several = pictures.length > 1;
    const given = { ...options(), ...(several ? { multi_image: true } : {}) };
    showSnippets(given);
    const answer = await fetch(SUBMIT, {
      method: "POST",
      headers: { "content-type": "application/json", authorization: `Bearer ${key}`, prefer: "wait=0" },
      body: JSON.stringify({ image: several ? pictures : pictures[0], ...given }),
    });
    let body = await answer.json();
    if (body.status === "processing") body = await follow(body.id, key);
    if (body.status === "success") show(body);
    else say(body.message, true);
  } catch (error) {
    say(`It did not work: ${error.message}`, true);
  } finally {
    button.disabled = false;
  }
}

at("call").addEventListener("submit", run);
at("pictures").addEventListener("change", (event) => choose(event.target.files));
const drop = at("drop");
drop.addEventListener("keydown", (event) => {
  if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    at("pictures").click();
  }
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  drop.addEventListener(kind, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", kind === "dragover");
    if (kind === "drop") choose(event.dataTransfer.files);
  });
}
for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", () => navigator.clipboard.writeText(at(button.dataset.copy).textContent));
}
showOptions();
