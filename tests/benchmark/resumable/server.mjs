// The peer: a forwarder on Node.js that keeps its answers with vercel's resumable-stream, as its README shows.
import http from "node:http";
import { Readable } from "node:stream";
import { createClient } from "redis";
import { createResumableStreamContext } from "resumable-stream";

const [url, plain] = process.argv.slice(2);
const [publisher, subscriber] = [createClient({ url }), createClient({ url })];
await Promise.all([publisher.connect(), subscriber.connect()]);
const context = createResumableStreamContext({ waitUntil: null, publisher, subscriber });
let count = 0;

const server = http.createServer(async (request, response) => {
  let text = "";
  for await (const piece of request.setEncoding("utf8")) text += piece;
  const { targetUrl, body } = JSON.parse(text);
  const upstream = await fetch(targetUrl, { method: "POST", body, headers: { "Content-Type": "application/json" } });
  const source = () => upstream.body.pipeThrough(new TextDecoderStream());
  const stream = plain ? source() : await context.createNewResumableStream(String(count++), source);
  response.writeHead(200, { "Content-Type": "text/event-stream", Connection: "close" });
  Readable.fromWeb(stream).pipe(response);
});
server.listen(0, "127.0.0.1", () => console.log(`Listening at: ${server.address().port}`));
