// The call on the page as code: what is copied runs as it is, beside the pictures.
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
// In an unquoted here-document the shell would read these three.
const plain = (text) => text.replace(/[\\$`]/g, "\\$&");

/** A shell command; the pictures go in by a here-document, since an argument cannot be so long. */
export function curl({ url, key, sources, given }) {
  const picture = ({ name, address }) => (address ? plain(JSON.stringify(address)) : `"$(base64 < ${quoted(name)} | tr -d '\\n')"`);
  const images = sources.map(picture);
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
  const picture = ({ name, address }) => (address ? literal(address) : `picture(${literal(name)})`);
  const images = sources.map(picture);
  const fields = [`"image": ${images.length > 1 ? `[${images.join(", ")}]` : images[0]}`];
  for (const [name, value] of Object.entries(given)) fields.push(`${literal(name)}: ${literal(value)}`);
  return `import base64
import pathlib

import requests


def picture(path):
    return base64.b64encode(pathlib.Path(path).read_bytes()).decode()


headers = {"Authorization": ${literal(`Bearer ${key}`)}}
body = {
    ${fields.join(",\n    ")},
}
call = requests.post(${literal(url)}, json=body, headers=headers).json()
while call["status"] == "processing":
    call = requests.post(call["fetch_result"], json={}, headers=headers).json()
if call["status"] != "success":
    raise SystemExit(call["message"])
for url in call["output"] + call["extra_assets"]:
    path = pathlib.Path(url.rsplit("/", 1)[-1])
    path.write_bytes(requests.get(url).content)
    print(path)`;
}
