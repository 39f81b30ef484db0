// Scenarios of the TypeScript client against a running service: node typescript_client.mjs SCENARIO CLIENT_JS IMAGE
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { createServer, request as forward } from "node:http";
import { pathToFileURL } from "node:url";

const [scenario, clientPath, imagePath] = process.argv.slice(2);
const { ApiError, Client, InvalidWebhook, JobFailed, verifyWebhook } = await import(pathToFileURL(clientPath).href);
const { IMAGE_TO_3D_URL: url, IMAGE_TO_3D_KEY: key, WEBHOOK_SECRET: secret } = process.env;
const client = new Client(`${url}/`, key, { retry_pause_ms: 10 });
const image = new File([new Uint8Array(await readFile(imagePath))], "sample.png");
const small = { resolution: 64, texture_size: 512, seed: 3 };

/** A server for the length of a function; `answer` handles a request with its body. */
async function serving(answer, use) {
  const server = createServer(async (request, response) => {
    const pieces = [];
    for await (const piece of request) pieces.push(piece);
    answer(request, Buffer.concat(pieces), response);
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  try {
    return await use(`http://127.0.0.1:${server.address().port}`);
  } finally {
    server.closeAllConnections();
    server.close();
  }
}

/** Hand a request on to the service; `then` gets its answer's status and body. */
function handOn(request, body, then) {
  const options = { method: request.method, headers: { ...request.headers, connection: "close" } };
  const onward = forward(url + request.url, options, async (answer) => {
    const pieces = [];
    for await (const piece of answer) pieces.push(piece);
    then(answer.statusCode, Buffer.concat(pieces));
  });
  onward.end(body);
}

const start = async (bytes, blob) => Buffer.from(await blob.arrayBuffer()).subarray(0, bytes).toString("latin1");

const scenarios = {
  async submit_to_download() {
    const seen = [];
    const estimate = await client.estimate(image, small);
    const job = await client.wait(await client.submit(image, { ...small, track_id: "a-1" }), {
      on_progress: ({ progress, stage }) => seen.push([progress, stage]),
    });
    const model = job.files.find(({ kind }) => kind === "model");
    const content = await client.download(model);
    const again = await client.wait(await client.exportAgain(job, { output_format: "stl", target_faces: 500 }));

    assert.ok(estimate.eta >= 1 && estimate.engine === "preview");
    assert.ok(seen.length >= 1 && seen.every(([progress]) => progress >= 0 && progress <= 100));
    assert.equal(job.track_id, "a-1");
    assert.equal(job.meta.seed, 3);
    assert.equal(await start(4, content), "glTF");
    assert.equal(content.size, model.bytes);
    assert.notEqual(again.id, job.id);
    assert.equal(again.files[0].format, "stl");
    assert.ok(again.files[0].faces <= 500);
    assert.deepEqual(await client.wait(job.id), { ...job });
  },

  async texts_and_views() {
    const text = Buffer.from(await image.arrayBuffer()).toString("base64");
    const views = await client.wait(await client.submit([image, image], { ...small, view_angles: ["front", "back"] }));
    const job = await client.wait(await client.submit(`data:image/png;base64,${text}`, small));

    assert.equal(views.meta.multi_image, true);
    assert.equal(job.status, "success");
    await assert.rejects(client.submit([image, text]), TypeError);
  },

  async refusals() {
    await assert.rejects(client.submit(image, { mesh_simplify: 0.5 }), (error) => {
      assert.ok(error instanceof ApiError);
      assert.deepEqual([error.status, error.error_code, error.retry_after], [400, "invalid_request", undefined]);
      assert.match(error.message, /mesh_simplify must be between/);
      return true;
    });
    await assert.rejects(new Client(url, "wrong").submit(image), { status: 401, error_code: "unauthorized" });
    for (const init_mesh of [undefined, new Blob(["solid a"])]) {
      await assert.rejects(client.submitText("a robot", { init_mesh, seed: 1 }), (error) => {
        assert.equal(error.error_code, "invalid_request");
        assert.match(error.message, /takes no text/);
        return true;
      });
    }
    await assert.rejects(client.wait(12), { status: 404, error_code: "not_found" });
    const asked = [];
    const limited = { status: "error", message: "Too fast.", error_code: "rate_limited", retry_after: 7 };
    await serving(
      (request, _, response) => {
        asked.push(request.url);
        if (asked.length === 1) response.writeHead(429, { "retry-after": "7" }).end(JSON.stringify(limited));
        else if (asked.length === 2) response.writeHead(200).end(JSON.stringify(limited)); // as with ERRORS_AS_200
        else response.writeHead(404).end("<html>nothing</html>");
      },
      async (address) => {
        const other = new Client(`${address}/studio`, key);
        const expected = { error_code: "rate_limited", retry_after: 7 };
        await assert.rejects(other.estimate("https://example.com/a.png"), { ...expected, status: 429 });
        await assert.rejects(other.estimate("https://example.com/a.png"), { ...expected, status: 200 });
        await assert.rejects(other.estimate("https://example.com/a.png"), { status: 404, error_code: "" });
      },
    );
    assert.deepEqual(asked, Array(3).fill("/studio/api/v6/3d/estimate"));
  },

  async failures() {
    const failing = await client.submit(`${url}/health`, small);
    await assert.rejects(client.wait(failing), (error) => {
      assert.ok(error instanceof JobFailed);
      assert.equal(error.job.id, failing.id);
      assert.equal(error.error_code, error.job.error_code);
      assert.ok(error.error_code);
      return true;
    });
    const waiting = await client.submit(image, { ...small, resolution: 512 });
    await client.cancel(waiting);
    await assert.rejects(client.wait(waiting), { error_code: "cancelled" });
    const aborted = AbortSignal.timeout(50);
    await assert.rejects(client.submit(image, small, { signal: AbortSignal.abort() }), { name: "AbortError" });
    await serving(
      () => {}, // never answers
      (address) => assert.rejects(new Client(address, key).submit(image, {}, { signal: aborted }), { name: "TimeoutError" }),
    );
    await serving(
      () => {},
      (address) => {
        const impatient = new Client(address, key, { retries: 1, retry_pause_ms: 1, timeout_ms: 100 });
        return assert.rejects(impatient.cancel(5), { name: "TimeoutError" });
      },
    );
  },

  async lost_answers() {
    // The first answer is lost after the service has accepted the job, the second is a proxy's 503.
    const accepted = [];
    const job = await serving(
      (request, body, response) =>
        handOn(request, body, (status, answer) => {
          accepted.push([request.headers["idempotency-key"], JSON.parse(answer).id]);
          if (accepted.length === 1) response.destroy();
          else if (accepted.length === 2) response.writeHead(503).end("<html>busy</html>");
          else response.writeHead(status).end(answer);
        }),
      (address) => new Client(address, key, { retry_pause_ms: 10 }).submit(image, small),
    );

    assert.equal(accepted.length, 3);
    assert.equal(new Set(accepted.map(String)).size, 1);
    assert.equal(job.id, accepted[0][1]);
    await client.wait(job);
    // A link that breaks is asked for again, and none of the requests carries the key.
    const asked = [];
    const content = await serving(
      (request, _, response) => {
        asked.push(JSON.stringify(request.headers));
        if (asked.length === 1) response.destroy();
        else response.writeHead(200).end("glTF");
      },
      (address) => client.download(`${address}/a.glb`),
    );
    assert.equal(await start(4, content), "glTF");
    assert.equal(asked.length, 2);
    assert.ok(asked.every((headers) => !headers.includes(key)));
    let attempts = 0;
    await serving(
      (_, __, response) => ((attempts += 1), response.destroy()),
      (address) => assert.rejects(new Client(address, key, { retries: 2, retry_pause_ms: 1 }).cancel(5), TypeError),
    );
    assert.equal(attempts, 3);
  },

  async webhooks() {
    let received;
    const arrived = new Promise((resolve) => (received = resolve));
    const [headers, body, job] = await serving(
      (request, content, response) => (response.writeHead(204).end(), received([request.headers, content.toString()])),
      async (address) => {
        const submitted = await client.submit(image, { ...small, webhook: `${address}/hook` });
        return [...(await arrived), submitted];
      },
    );

    const verified = await verifyWebhook(secret, headers, body);
    assert.deepEqual([verified.id, verified.status], [job.id, "success"]);
    assert.equal((await verifyWebhook(secret, new Headers(headers), body)).id, job.id);
    const rotated = { ...headers, "webhook-signature": `v1,AAAA v2,x ${headers["webhook-signature"]}` };
    assert.equal((await verifyWebhook(secret, rotated, body)).id, job.id);
    const forged = [
      [secret, headers, body.replace("success", "failed")],
      [`whsec_${btoa("another secret")}`, headers, body],
      [secret, { ...headers, "webhook-timestamp": String(Math.floor(Date.now() / 1000) - 400) }, body],
      [secret, { ...headers, "webhook-id": "another" }, body],
      [secret, { ...headers, "webhook-signature": "v1,%%%" }, body],
      [secret, { ...headers, "webhook-signature": headers["webhook-signature"].replace("v1,", "v2,") }, body],
      [secret, {}, body],
    ];
    for (const each of forged) await assert.rejects(verifyWebhook(...each), InvalidWebhook);
  },
};

await scenarios[scenario]();
