/** Turns an image into a GLB and an STL: node build/example.js robot.png out/ */
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { basename, join } from "node:path";
import { Client, JobFailed, type SuccessBody } from "./client.js";

const [image = "", folder = "out"] = process.argv.slice(2);
const client = new Client(process.env["IMAGE_TO_3D_URL"] ?? "http://127.0.0.1:8000", process.env["IMAGE_TO_3D_KEY"] ?? "");

/** Write the files of a job into the folder. */
async function save(job: SuccessBody): Promise<void> {
  for (const file of job.files) {
    const path = join(folder, basename(new URL(file.url).pathname));
    await writeFile(path, Buffer.from(await (await client.download(file)).arrayBuffer()));
    console.log(path);
  }
}

try {
  await mkdir(folder, { recursive: true });
  const source = /^https?:/.test(image) ? image : new File([new Uint8Array(await readFile(image))], basename(image));
  const { eta } = await client.estimate(source);
  console.error(`ready in about ${eta} s`);
  const submitted = await client.submit(source, { output_format: "glb", seed: 1 });
  const job = await client.wait(submitted, {
    on_progress: ({ progress, message }) => console.error(`${progress} % ${message}`),
  });
  await save(job);
  await save(await client.wait(await client.exportAgain(job, { output_format: "stl", target_faces: 5000 })));
} catch (error) {
  if (!(error instanceof JobFailed)) throw error;
  console.error(error.message, error.retryable ? "Try again later." : "");
  process.exitCode = 1;
}
