// Submits a local file, waits for the result and saves the files: node submit.mjs robot.png out/
import { randomUUID } from "node:crypto";
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { basename, join } from "node:path";

const [image, folder] = process.argv.slice(2);
const { IMAGE_TO_3D_URL: url, IMAGE_TO_3D_KEY: key } = process.env;

/** POST and return the body; a refusal throws its message. */
async function call(path, body, headers = {}) {
  const answer = await fetch(url + path, {
    method: "POST",
    headers: { "content-type": "application/json", key, ...headers },
    body: JSON.stringify(body),
  });
  const told = await answer.json();
  if (told.status === "error") throw new Error(`refused (${told.error_code}): ${told.message}`);
  return told;
}

// The same Idempotency-Key gives the same job, so a submit can be repeated after a lost connection.
const submit = { image: (await readFile(image)).toString("base64"), output_format: "glb", seed: 1 };
let job = await call("/api/v6/3d/image_to_3d", submit, { "idempotency-key": randomUUID() });

while (job.status === "processing") {
  console.error(`job ${job.id}: ${job.message}`);
  job = await call(`/api/v6/3d/fetch/${job.id}`, {}); // answers as soon as the job ends, after 20 s at the latest
}

if (job.status === "failed") throw new Error(`job ${job.id} failed (${job.error_code}): ${job.message}`);
await mkdir(folder, { recursive: true });
for (const link of [...job.output, ...job.extra_assets]) {
  const answer = await fetch(link);
  if (!answer.ok) throw new Error(`HTTP ${answer.status} for ${link}`);
  const path = join(folder, basename(new URL(link).pathname));
  await writeFile(path, Buffer.from(await answer.arrayBuffer()));
  console.log(path);
}
