// Shows a job's progress until it ends: node events.mjs 1207959551
// (A browser's EventSource cannot send the header `key`; fetch can.)
const { IMAGE_TO_3D_URL: url, IMAGE_TO_3D_KEY: key } = process.env;
const answer = await fetch(`${url}/api/v1/enterprise/3d/events/${process.argv[2]}`, { headers: { key } });
if (!answer.ok) throw new Error(`HTTP ${answer.status}: ${await answer.text()}`);

let text = "";
for await (const piece of answer.body.pipeThrough(new TextDecoderStream())) {
  text += piece.replaceAll("\r", "");
  const events = text.split("\n\n");
  text = events.pop();
  for (const event of events) {
    const lines = event.split("\n");
    const name = lines.find((line) => line.startsWith("event: "))?.slice(7);
    const data = lines.find((line) => line.startsWith("data: "))?.slice(6);
    if (!data) continue; // a comment that keeps the connection open
    const body = JSON.parse(data);
    console.log(name === "end" ? [body.status, ...(body.output ?? [])].join(" ") : `${body.stage} ${body.progress} %`);
  }
}
