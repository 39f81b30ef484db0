// The request of the page as code: the copied text runs unchanged, in the folder of the images, and saves the files.
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
// In an unquoted here-document the shell would read these three.
const plain = (text) => text.replace(/[\\$`]/g, "\\$&");
const stemOf = (source) => (source?.name ?? "").replace(/\.[^.]+$/, "").replace(/[^\p{L}\p{N} ._()-]+/gu, "_") || "model";
const oneOrList = (images) => (images.length > 1 ? `[${images.join(", ")}]` : images[0]);

/** A shell command; the images are passed by a here-document, because an argument cannot be that long. */
export function curl({ url, key, sources, given }) {
  const source = ({ name, address }) => (address ? plain(JSON.stringify(address)) : `"$(base64 < ${quoted(name)} | tr -d '\\n')"`);
  const fields = sources.length ? [`"image": ${oneOrList(sources.map(source))}`] : [];
  for (const [name, value] of Object.entries(given)) fields.push(plain(`${JSON.stringify(name)}: ${JSON.stringify(value)}`));
  const authorization = `-H ${quoted(`Authorization: Bearer ${key}`)}`;
  const isObj = given.output_format === "obj";
  // An OBJ names its material by the material's own name.
  const save = isObj ? "-O" : `-o ${quoted(`${stemOf(sources[0])}.`)}"\${url##*.}"`;
  return [
    `curl -sS -o job.json ${quoted(url)} \\`,
    `  ${authorization} \\`,
    "  -H 'Content-Type: application/json' \\",
    "  --data-binary @- <<JSON",
    `{${fields.join(",\n ")}}`,
    "JSON",
    `while grep -q '"status":"processing"' job.json; do`,
    `  fetch_result=$(sed 's/.*"fetch_result":"\\([^"]*\\)".*/\\1/' job.json)`,
    `  curl -sS -o job.json -X POST "$fetch_result" \\`,
    `    ${authorization}`,
    "done",
    "cat job.json",
    `grep -o '"output":\\[[^]]*' job.json | grep -o 'http[^"]*' | while read -r url; do`,
    `  curl -sS ${save} "$url"`,
    "done",
  ].join("\n");
}

const literal = (value) => (value === true ? "True" : value === false ? "False" : value === null ? "None" : Array.isArray(value) ? `[${value.map(literal).join(", ")}]` : JSON.stringify(value));

/** A Python program: submits, waits for the end, saves the files. */
export function python({ url, key, sources, given }) {
  const source = ({ name, address }) => (address ? literal(address) : `image(${literal(name)})`);
  const fields = sources.length ? [`"image": ${oneOrList(sources.map(source))}`] : [];
  for (const [name, value] of Object.entries(given)) fields.push(`${literal(name)}: ${literal(value)}`);
  return `import base64
import pathlib

import requests


def image(path):
    return base64.b64encode(pathlib.Path(path).read_bytes()).decode()


headers = {"Authorization": ${literal(`Bearer ${key}`)}}
body = {
    ${fields.join(",\n    ")},
}
job = requests.post(${literal(url)}, json=body, headers=headers).json()
while job["status"] == "processing":
    job = requests.post(job["fetch_result"], json={}, headers=headers).json()
if job["status"] != "success":
    raise SystemExit(job["message"])
for url in job["output"] + job["extra_assets"]:
    path = pathlib.Path(url.rsplit("/", 1)[-1])
    path.write_bytes(requests.get(url).content)
    print(path)`;
}

/** A JavaScript program for Node: submits, waits for the end, saves the files. */
export function javascript({ url, key, sources, given }) {
  const source = ({ name, address }) => (address ? JSON.stringify(address) : `await image(${JSON.stringify(name)})`);
  const fields = sources.length ? [`image: ${oneOrList(sources.map(source))}`] : [];
  for (const [name, value] of Object.entries(given)) fields.push(`${name}: ${JSON.stringify(value)}`);
  return `// node job.mjs
import { readFile, writeFile } from "node:fs/promises";

const image = (path) => readFile(path, "base64");

async function post(url, body) {
  const answer = await fetch(url, {
    method: "POST",
    headers: { authorization: ${JSON.stringify(`Bearer ${key}`)}, "content-type": "application/json" },
    body: JSON.stringify(body),
  });
  return answer.json();
}

let job = await post(${JSON.stringify(url)}, {
  ${fields.join(",\n  ")},
});
while (job.status === "processing") job = await post(job.fetch_result, {});
if (job.status !== "success") throw new Error(job.message);
for (const url of [...job.output, ...job.extra_assets]) {
  const name = url.split("/").pop();
  await writeFile(name, new Uint8Array(await (await fetch(url)).arrayBuffer()));
  console.log(name);
}`;
}
