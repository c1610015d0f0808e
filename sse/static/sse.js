// Reads event streams; sse.d.ts documents the names.
// Clauses quoted: https://html.spec.whatwg.org/multipage/server-sent-events.html

/** @type {typeof import("./sse.js").createParser} */
export function createParser({ onEvent, onRetry, lastEventId = "" }) {
	let id = lastEventId;
	let type = "";
	let data = "";
	let rest = "";
	let hasFields = false;
	// 9.2.5: "One leading U+FEFF BYTE ORDER MARK character must be ignored if any are present."
	let skip = "\uFEFF";
	const parser = {
		feed,
		lastEventId,
		get isInside() {
			return hasFields || /^[^:]/.test(rest);
		},
	};
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
		if (field) hasFields = true;
		if (field === "event") type = value;
		else if (field === "data") data += value + "\n";
		else if (field === "id" && !value.includes("\0")) id = value;
		else if (field === "retry" && /^\d+$/.test(value)) onRetry?.(+value);
	}

	function dispatch() {
		parser.lastEventId = id;
		const event = data && { type: type || "message", data: data.slice(0, -1), lastEventId: id };
		type = data = "";
		hasFields = false;
		if (event) onEvent(event);
	}
}

/** @type {typeof import("./sse.js").openSSE} */
export function openSSE(url, handlers = {}) {
	const types = ["message", "error", ...(handlers.types ?? [])];
	const controller = new AbortController();
	if (handlers.shared) {
		const failed = (/** @type {unknown} */ cause) => handlers.onError?.(failure("connection_failed", { cause }));
		// A chunk of its own would make webpack need a page, from whose script it takes the path of the chunk.
		import(/* webpackMode: "eager" */ "./shared.js").then((module) => module.openShared(url, handlers, controller), failed);
		return { controller };
	}
	const source = new EventSource(url);
	let code = "";
	/** @param {Event} event */
	function receive(event) {
		if (event instanceof MessageEvent) {
			if (!types.includes(event.type)) return;
			code = reasonOf(event); // the server's `event: error` comes this way too
			handlers.onEvent?.(event);
		} else if (event.type === "open") handlers.onOpen?.();
		else handlers[source.readyState === 2 ? "onError" : "onReconnect"]?.(failure(code || LOST));
	}
	for (const type of [...types, "open"]) source.addEventListener(type, receive);
	controller.signal.addEventListener("abort", () => source.close());
	return { controller };
}

/** @type {typeof import("./sse.js").fetchSSE} */
export const fetchSSE = (url, init = {}, handlers = {}) => start(String(url), init, handlers);

/** @type {typeof import("./sse.js").resumeSSE} */
export const resumeSSE = (location, offset, handlers = {}, init = {}) =>
	start(String(location), { ...init, reconnect: false }, handlers, absolute(String(location)), offset);

/**
 * @param {string} url
 * @param {import("./sse.js").FetchInit} options
 * @param {import("./sse.js").FetchHandlers} handlers
 * @param {string} [location] where the recording is read, once that is known
 * @returns {import("./sse.js").FetchConnection}
 */
function start(url, options, handlers, location, offset = 0) {
	let { fetch: send = fetch, reconnect, resume, connectTimeout, idleTimeout, signal: outer, ...request } = options;
	if (reconnect && (request.method ?? "GET").toUpperCase() !== "GET")
		throw new TypeError("only a GET may be sent again");
	const headers = new Headers(request.headers);
	if (!headers.has("Accept")) headers.set("Accept", "text/event-stream");
	if (resume) headers.set("Stream-TTL", String(resume));
	request = { cache: "no-store", ...request, headers };

	const controller = new AbortController();
	const { signal } = controller;
	/** Ends the running connection, or the wait between two. @type {(error?: Error) => void} */
	let drop = () => {};
	const abort = () => controller.abort(outer?.reason);
	signal.addEventListener("abort", () => drop());
	outer?.addEventListener("abort", abort);
	if (outer?.aborted) abort();

	let delay = 3000; // ms, until the server's `retry`
	let failures = 0; // since the last event
	let keep = resume ?? 300; // s for which a recording can be read
	let position = offset; // the bytes of the body that the parser has been fed
	let touched = Date.now(); // when the last of them came
	let code = ""; // of the gateway's error event, if that was the last event
	let isWhole = false; // the body ended, and not inside an event
	let isClosed = false; // the recording is complete, and all of it has been read
	let isFinal = false; // it makes no sense to try again
	let lastByte = 10;
	let lineIsEmpty = true;
	let decoder = newDecoder();
	let parser = newParser(headers.get("Last-Event-ID") ?? "");
	if (location) readRecording();
	if (offset) parser.feed("\n"); // what follows does not begin with a byte order mark

	/** @param {string} lastEventId */
	function newParser(lastEventId) {
		return createParser({
			lastEventId,
			onRetry: (time) => (delay = location ? delay : time),
			onEvent: (event) => {
				code = reasonOf(event);
				failures = 0;
				handlers.onEvent?.(event);
			},
		});
	}

	/** From here on requests read the recording. */
	function readRecording() {
		delay = 500;
		for (const name of ["Content-Type", "Stream-TTL", "Stream-Leave", "Idempotency-Key"]) headers.delete(name);
		request = { ...request, method: "GET", body: undefined };
	}

	/** @param {Response} response */
	function findRecording({ headers: fields, url: from }) {
		const found = new URL(fields.get("Location") ?? "", absolute(from || url));
		// The credentials in the request's fields are meant for the gateway alone.
		if (found.origin !== new URL(absolute(url)).origin) return;
		location = found.href;
		position = offset = Number(fields.get("Stream-Next-Offset"));
		keep = Number(fields.get("Stream-TTL")) || keep;
		readRecording();
	}

	/** Feeds the parser event by event, so that `offset` is right whenever a handler is called. @param {Uint8Array} bytes */
	function feed(bytes) {
		touched = Date.now();
		let from = 0;
		for (let at = 0; at < bytes.length && !signal.aborted; at++) {
			const byte = bytes[at];
			const isLineEnd = byte === 10 || byte === 13;
			const isSecondHalf = byte === 10 && lastByte === 13;
			const endsEvent = isSecondHalf ? offset === position : isLineEnd && lineIsEmpty;
			lastByte = byte;
			lineIsEmpty = isLineEnd;
			position++;
			if (endsEvent) {
				offset = position;
				parser.feed(decoder.decode(bytes.subarray(from, at + 1), { stream: true }));
				from = at + 1;
			}
		}
		if (!signal.aborted) parser.feed(decoder.decode(bytes.subarray(from), { stream: true }));
	}

	/** One connection, to its end; what it resolves to is why, if not well. */
	async function connect() {
		const attempt = new AbortController();
		/** @type {number | undefined} */
		let status;
		/** @type {any} */
		let reader;
		/** @type {any} */
		let late; // why the connection was given up, if it was
		const dropped = new Promise((_, reject) => {
			drop = (error) => {
				reject((late ??= error));
				attempt.abort();
				reader?.cancel?.().catch(() => {}); // the caller's `fetch` may not have looked at the signal
			};
		});
		const limit = newLimit((name) => drop(failure(name, { status })));
		/** @param {string} name */
		const failed = (name) => (/** @type {unknown} */ cause) => late ?? failure(name, { status, cause });
		const ask = async () =>
			send(location ? `${location}?offset=${position}&live=tail` : url, { ...request, signal: attempt.signal });

		isFinal = isClosed = false;
		limit("connect_timeout", connectTimeout);
		const response = await Promise.race([ask(), dropped]).catch(failed("connection_failed"));
		limit();
		if (response instanceof Error) return response;
		const { body, headers: fields } = response;
		status = response.status;
		// 9.2.1: "told to stop reconnecting using the HTTP 204 No Content response code"
		if (status === 204) return void (isFinal = true);
		if (!body || !response.ok || !isEventStream(fields.get("Content-Type") ?? "")) {
			const error = await refusal(response);
			isFinal = error.retryAfter === undefined && !(location && (response.status >= 500 || status === 429));
			if (fields.has("Stream-End")) isWhole = false;
			return error;
		}
		if (resume && !location && fields.has("Location")) findRecording(response);
		isClosed = fields.get("Stream-Closed") === "true";
		if (!isClosed) handlers.onOpen?.(response);
		isWhole = false;
		reader = body.getReader ? body.getReader() : body[Symbol.asyncIterator](); // node-fetch has no getReader
		try {
			for (;;) {
				limit("read_timeout", idleTimeout);
				const piece = await (reader.read ?? reader.next).call(reader).catch(failed(code || LOST));
				if (piece instanceof Error) return piece;
				if (piece.done || late) break;
				feed(piece.value);
			}
		} finally {
			limit();
		}
		if (location)
			code = ""; // the gateway puts nothing into a recording
		else parser.feed(decoder.decode());
		// For some engines a body that broke off is one that ended.
		isWhole = !parser.isInside;
		return late ?? (isWhole && !code ? undefined : failure(code || LOST, { status }));
	}

	async function run() {
		while (!signal.aborted) {
			const from = position;
			const error = await connect();
			if (signal.aborted) return;
			// Only the recording shows whether an end was the end.
			const isOver = location ? isClosed || Date.now() - touched > keep * 1000 : !reconnect;
			if (isOver || isFinal) return error && !(location && isWhole) ? handlers.onError?.(error) : handlers.onDone?.();
			if (error || !location) handlers.onReconnect?.(error);
			const isAtOnce = location && !error && position > from;
			await pause(
				isAtOnce ? 0 : (error?.retryAfter ?? 0) * 1000 || Math.min(delay * 2 ** failures, Math.max(delay, 30000)),
			);
			failures = error || location ? failures + 1 : 0;
			if (!location) renew();
		}
	}

	/** Waits, and never as long as all the others do. @param {number} time ms */
	async function pause(time) {
		if (signal.aborted) return;
		await new Promise((done) => {
			const timer = setTimeout(done, Math.min(time + Math.random() * Math.min(time, 5000), LONGEST));
			drop = () => done(clearTimeout(timer));
		});
	}

	/** The next connection brings a stream of its own. */
	function renew() {
		const { lastEventId } = parser;
		// "encoded as UTF-8": fetch takes a string of bytes
		const bytes = Array.from(new TextEncoder().encode(lastEventId), (byte) => String.fromCharCode(byte));
		headers.delete("Last-Event-ID");
		if (lastEventId) headers.set("Last-Event-ID", bytes.join(""));
		parser = newParser(lastEventId);
		decoder = newDecoder();
		code = "";
	}

	async function stop() {
		const patch = async () => send(`${location}?action=abort`, { ...request, method: "PATCH", keepalive: true });
		const stopped = location && patch().catch((cause) => Promise.reject(failure("connection_failed", { cause })));
		controller.abort();
		const response = await stopped;
		if (response && !response.ok) throw await refusal(response);
	}

	run()
		.catch((error) => {
			controller.abort(); // a handler threw: close the connection
			throw error;
		})
		.finally(() => outer?.removeEventListener("abort", abort));
	return {
		controller,
		get location() {
			return location;
		},
		get offset() {
			return offset;
		},
		stop,
	};
}

const LOST = "connection_lost";
const LONGEST = 2 ** 31 - 1; // of a timer, ms

const newDecoder = () => new TextDecoder("utf-8", { ignoreBOM: true });

/** @param {string} url as fetch takes it, in a page, in a worker, and elsewhere */
const absolute = (url) => new URL(url, globalThis.document?.baseURI ?? globalThis.location?.href).href;

/** Makes what puts a time limit in the place of the one before. @param {(name: string) => void} expire */
function newLimit(expire) {
	/** @type {ReturnType<typeof setTimeout> | undefined} */
	let timer;
	return (name = "", time = 0) => {
		clearTimeout(timer);
		const half = Math.min(time, LONGEST) / 2;
		// In two halves: what came while the page was frozen is read before the second one is over.
		if (half) timer = setTimeout(() => (timer = setTimeout(expire, half, name)), half);
	};
}

/** Fetch, 2.2.2: of several types the last counts. @param {string} field */
function isEventStream(field) {
	const types = field.split(/,(?=(?:[^"]*"[^"]*")*[^"]*$)/).map((type) => type.split(";")[0].trim().toLowerCase());
	return types.filter((type) => /^[^/*\s]+\/[^/\s]+$/.test(type)).pop() === "text/event-stream";
}

/** @param {Response} response */
async function refusal(response) {
	const { body: stream, headers, ok, status } = response;
	if (ok) stream?.cancel?.();
	if (ok) return failure("not_event_stream", { status });
	const body = await response.text().catch(() => "");
	const ours = headers.get("Content-Type") === "application/problem+json" && !headers.has("X-Upstream-Status");
	const named = ours && (headers.get("Stream-End") ?? parse(body)?.code);
	return failure(typeof named === "string" ? named : "http_error", { status, body, retryAfter: retryAfter(headers) });
}

/** RFC 9110, 10.2.3: "Retry-After = HTTP-date / delay-seconds"; undefined for anything else. @param {Headers} fields */
function retryAfter(fields) {
	const value = fields.get("Retry-After") ?? "";
	if (/^\d+$/.test(value)) return +value;
	const time = /^\w+, .+ GMT$/.test(value) ? Date.parse(value) : NaN;
	return time ? Math.max(0, Math.ceil((time - Date.now()) / 1000)) : undefined;
}

/** Before a cut the gateway's last event holds why, and nothing else. @param {{ type: string, data: string }} event */
function reasonOf({ type, data }) {
	const { code = "", error, ...rest } = (type === "error" && parse(data)) || {};
	const isOurs = typeof code === "string" && (!error || error.code === code) && !Object.keys(rest).length;
	return isOurs ? code : "";
}

/** @param {string} text */
function parse(text) {
	try {
		return JSON.parse(text);
	} catch {} // not the gateway's
}

/** @type {(code: string, facts?: object) => import("./sse.js").SSEError} */
const failure = (code, facts) => Object.assign(new Error(code), { name: "SSEError", code }, facts);
