// Reads a feed through the gateway by the npm package eventsource, over a reconnection, and prints its events as JSON.
import { EventSource } from "eventsource";

const [url, passcode] = process.argv.slice(2);
const source = new EventSource(url, {
  fetch: (input, init) => fetch(input, { ...init, headers: { ...init.headers, "X-Passcode": passcode } }),
});

const seen = [];
for (const type of ["price", "end"]) {
  source.addEventListener(type, (event) => {
    seen.push([type, event.lastEventId, event.data]);
    if (type === "end") {
      source.close();
      console.log(JSON.stringify(seen));
    }
  });
}
source.addEventListener("error", (event) => {
  if (source.readyState === source.CLOSED) console.log(JSON.stringify({ error: event.code ?? null }));
});
