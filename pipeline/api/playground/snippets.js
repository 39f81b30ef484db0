// The request of the page as code: the copied text runs unchanged, in the folder of the images.
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
// In an unquoted here-document the shell would read these three.
const plain = (text) => text.replace(/[\\$`]/g, "\\$&");

/** A shell command; the images are passed by a here-document, because an argument cannot be that long. */
export function curl({ url, key, sources, given }) {
  const source = ({ name, address }) => (address ? plain(JSON.stringify(address)) : `"$(base64 < ${quoted(name)} | tr -d '\\n')"`);
  const images = sources.map(source);
  const fields = [`"image": ${images.length > 1 ? `[${images.join(", ")}]` : images[0]}`];
  for (const [name, value] of Object.entries(given)) fields.push(plain(`${JSON.stringify(name)}: ${JSON.stringify(value)}`));
  return [
    `curl -sS ${quoted(url)} \\`,
    `  -H ${quoted(`Authorization: Bearer ${key}`)} \\`,
    `  -H 'Content-Type: application/json' \\`,
    `  --data-binary @- <<JSON`,
    `{${fields.join(",\n ")}}`,
    "JSON",
  ].join("\n");
}

const literal = (value) => (value === true ? "True" : value === false ? "False" : value === null ? "None" : JSON.stringify(value));

/** A Python program: submits, waits for the end, saves the files. */
export function python({ url, key, sources, given }) {
  const source = ({ name, address }) => (address ? literal(address) : `image(${literal(name)})`);
  const images = sources.map(source);
  const fields = [`"image": ${images.length > 1 ? `[${images.join(", ")}]` : images[0]}`];
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
