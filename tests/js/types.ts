// What a TypeScript page may and may not do with sse.js; types.test.js has tsc judge it.
import { createParser, fetchSSE, openSSE, type SSEError } from "../../sse/static/sse.js";

const { controller } = fetchSSE(
	"/forward-sse",
	{ method: "POST", body: "{}", headers: { "X-Passcode": "p" } },
	{
		onOpen: (response) => response.headers.get("X-Request-ID"),
		onEvent: ({ type, data, lastEventId }) => console.log(type.length + data.length + lastEventId.length),
		onError: (error: SSEError) => (error.retryAfter ?? 0) + (error.status ?? 0) + error.code.length,
		onDone: () => {},
	},
);
controller.abort();
// `await`, as the seed's function wants it, is harmless.
(await fetchSSE(new URL("https://example.com/"), { reconnect: true }, {})).controller.signal.aborted;
openSSE("/sse", { types: ["tick"], onEvent: (event) => event.data.trim(), onReconnect: (error) => error?.code });
createParser({ onEvent: (event) => event.type, onRetry: (time) => time + 1 }).feed("data: x\n\n");

// @ts-expect-error data is text
fetchSSE("/", {}, { onEvent: ({ data }) => data * 2 });
// @ts-expect-error a handler that does not exist
fetchSSE("/", {}, { onMessage: () => {} });
// @ts-expect-error EventSource cannot tell that a stream is complete
openSSE("/", { onDone: () => {} });
// @ts-expect-error the parser takes text, not bytes
createParser({ onEvent: () => {} }).feed(new Uint8Array());
