// Reads event streams; sse.d.ts documents the names.
// Clauses quoted: https://html.spec.whatwg.org/multipage/server-sent-events.html

/** @type {typeof import("./sse.js").createParser} */
export function createParser({ onEvent, onRetry, lastEventId = "" }) {
	let id = lastEventId;
	let type = "";
	let data = "";
	let rest = "";
	// 9.2.5: "One leading U+FEFF BYTE ORDER MARK character must be ignored if any are present."
	let skip = "\uFEFF";
	const parser = { feed, lastEventId };
	return parser;

	/** @param {string} text */
	function feed(text) {
		if (!text) return;
		const lines = text.slice(text[0] === skip ? 1 : 0).split(/\r\n|\r|\n/);
		// A CR ends its line at once; the LF of its CRLF may come with the next piece.
		skip = text.endsWith("\r") ? "\n" : "";
		lines[0] = rest + lines[0];
		rest = lines.pop() ?? "";
		for (const line of lines) line ? interpret(line) : dispatch();
	}

	/** @param {string} line */
	function interpret(line) {
		// A comment is a field without a name.
		const [, field, value] = line.match(/^([^:]*):? ?(.*)$/s) ?? [];
		if (field === "event") type = value;
		else if (field === "data") data += value + "\n";
		else if (field === "id" && !value.includes("\0")) id = value;
		else if (field === "retry" && /^\d+$/.test(value)) onRetry?.(+value);
	}

	function dispatch() {
		parser.lastEventId = id;
		const event = data && { type: type || "message", data: data.slice(0, -1), lastEventId: id };
		type = data = "";
		if (event) onEvent(event);
	}
}

/** @type {typeof import("./sse.js").openSSE} */
export function openSSE(url, handlers) {
	const controller = new AbortController();
	const source = new EventSource(url);
	let code = LOST;
	/** @param {Event} event */
	function receive(event) {
		if (event instanceof MessageEvent) {
			code = reasonOf(event); // the server's `event: error` comes this way too
			handlers.onEvent?.(event);
		} else handlers[source.readyState === 2 ? "onError" : "onReconnect"]?.(failure(code));
	}
	for (const type of ["message", "error", ...(handlers.types ?? [])]) source.addEventListener(type, receive);
	source.onopen = () => handlers.onOpen?.();
	controller.signal.onabort = () => source.close();
	return { controller };
}

/** @type {typeof import("./sse.js").fetchSSE} */
export function fetchSSE(url, { fetch: send = fetch, reconnect = false, ...init }, handlers) {
	const controller = new AbortController();
	const signal = AbortSignal.any([controller.signal, init.signal ?? controller.signal]);
	const request = new Request(url, { cache: "no-store", ...init, signal });
	const headers = request.headers;
	if (reconnect && request.method !== "GET") throw new TypeError("only a GET may be sent again");
	headers.set("Accept", "text/event-stream");
	let lastEventId = headers.get("Last-Event-ID") ?? "";
	let delay = 3000; // ms, until the server's `retry`

	/** One connection, to its end; what it resolves to is why, if not well. */
	async function connect() {
		const response = await send(request).catch((cause) => failure("connection_failed", { cause }));
		if (response instanceof Error) return response;
		const { body, status } = response;
		// 9.2.1: "told to stop reconnecting using the HTTP 204 No Content response code"
		if (status === 204) return void (reconnect = false);
		if (!body || !response.ok || !/^text\/event-stream *(;|$)/i.test(response.headers.get("Content-Type") ?? "")) {
			const error = await refusal(response);
			if (!error.retryAfter) reconnect = false;
			return error;
		}
		handlers.onOpen?.(response);
		let code = LOST;
		const parser = createParser({
			lastEventId,
			onRetry: (time) => (delay = time),
			onEvent: (event) => {
				code = reasonOf(event);
				if (!signal.aborted) handlers.onEvent?.(event);
			},
		});
		const reader = body.pipeThrough(new TextDecoderStream("utf-8", { ignoreBOM: true })).getReader();
		for (;;) {
			const piece = await reader.read().catch((cause) => failure(code, { status, cause }));
			if (piece instanceof Error) return piece;
			if (piece.done) return;
			parser.feed(piece.value);
			lastEventId = parser.lastEventId;
		}
	}

	async function run() {
		while (!signal.aborted) {
			const error = await connect();
			if (signal.aborted) return;
			if (!reconnect) return error ? handlers.onError?.(error) : handlers.onDone?.();
			handlers.onReconnect?.(error);
			const time = error?.retryAfter ? error.retryAfter * 1000 : delay;
			await new Promise((done) => {
				const timer = setTimeout(done, Math.min(time, 2 ** 31 - 1)); // a timer's longest
				signal.onabort = () => done(clearTimeout(timer));
			});
			// "encoded as UTF-8": fetch takes a string of bytes
			headers.delete("Last-Event-ID");
			if (lastEventId) headers.set("Last-Event-ID", String.fromCharCode(...new TextEncoder().encode(lastEventId)));
		}
	}

	run().catch((error) => {
		controller.abort(); // a handler threw: let go of the connection
		throw error;
	});
	return { controller };
}

/** @param {Response} response */
async function refusal(response) {
	const { headers, ok, status } = response;
	if (ok) response.body?.cancel();
	if (ok) return failure("not_event_stream", { status });
	const body = await response.text().catch(() => "");
	const ours = headers.get("Content-Type") === "application/problem+json" && !headers.has("X-Upstream-Status");
	const retryAfter = Number(headers.get("Retry-After")) || undefined;
	return failure((ours && codeOf(body)) || "http_error", { status, body, retryAfter });
}

const LOST = "connection_lost";

/** @param {{ type: string, data: string }} event Before a cut the gateway's last one says why. */
const reasonOf = ({ type, data }) => (type === "error" && codeOf(data)) || LOST;

/** @param {string} text */
function codeOf(text) {
	try {
		return JSON.parse(text).code;
	} catch {} // not the gateway's words
}

/** @type {(code: string, facts?: object) => import("./sse.js").SSEError} */
const failure = (code, facts) => Object.assign(new Error(code), { name: "SSEError", code }, facts);
