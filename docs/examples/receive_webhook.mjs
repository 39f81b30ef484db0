// Receives webhooks and verifies their signature: WEBHOOK_SECRET=whsec_… node receive_webhook.mjs 8080
import { createHmac, timingSafeEqual } from "node:crypto";
import { createServer } from "node:http";

const secret = Buffer.from(process.env.WEBHOOK_SECRET.replace("whsec_", ""), "base64");

/** Standard Webhooks: HMAC-SHA256 of "id.timestamp.body"; the header holds one or more "v1,signature". */
function isGenuine(headers, body) {
  const { "webhook-id": id, "webhook-timestamp": timestamp, "webhook-signature": signatures } = headers;
  if (!id || !signatures || !(Math.abs(Date.now() / 1000 - Number(timestamp)) < 300)) return false;
  const expected = createHmac("sha256", secret).update(`${id}.${timestamp}.`).update(body).digest();
  return signatures.split(" ").some((each) => {
    const [version, signature = ""] = each.split(",");
    const given = Buffer.from(signature, "base64");
    return version === "v1" && given.length === expected.length && timingSafeEqual(given, expected);
  });
}

createServer(async (request, response) => {
  const pieces = [];
  for await (const piece of request) pieces.push(piece);
  const body = Buffer.concat(pieces);
  if (isGenuine(request.headers, body)) {
    // The same webhook-id comes again when an attempt is repeated: act on each id once.
    const job = JSON.parse(body);
    console.log([request.headers["webhook-id"], job.id, job.status, ...(job.output ?? [])].join(" "));
    response.writeHead(204).end();
  } else {
    console.log("refused");
    response.writeHead(401).end();
  }
}).listen(Number(process.argv[2]), "127.0.0.1");
