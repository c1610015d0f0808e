// Reads a recording by the client of the durable-streams protocol, and prints what it saw as JSON.
import { stream } from "@durable-streams/client";

const [url, live, offset] = process.argv.slice(2);
const decoder = new TextDecoder();
let text = "";
try {
  const found = await stream({ url, offset, live: live === "false" ? false : live, backoffOptions: { maxRetries: 0 } });
  for await (const piece of found.bodyStream()) text += decoder.decode(piece, { stream: true });
  console.log(JSON.stringify({ text, offset: found.offset, upToDate: found.upToDate, closed: found.streamClosed }));
} catch (error) {
  console.log(JSON.stringify({ text, error: error.constructor.name, status: error.status }));
}
