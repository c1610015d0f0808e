// Reads one event stream for all tabs of an origin: what openSSE with `shared` loads.
// The tab that holds a lock (Web Locks) reads, and passes on what it reads by a BroadcastChannel.
import { createParser, fetchSSE } from "./sse.js";

/**
 * `number` and `lastEventId` are where the sender is in the stream, in every message but "join".
 *
 * @typedef {{ number: number, lastEventId: string }} Position
 * @typedef {Position & { kind: "state", isOpen: boolean }
 *   | Position & { kind: "id" | "open" }
 *   | Position & { kind: "event", event: import("./sse.js").ServerSentEvent }
 *   | Position & { kind: "reconnect" | "error", error?: Facts }} Message
 * @typedef {{ kind: "join" }} Join
 * @typedef {{ code: string, status?: number, retryAfter?: number, body?: string }} Facts
 */

/**
 * @param {string | URL} url
 * @param {import("./sse.js").SourceHandlers} handlers
 * @param {AbortController} controller
 */
export function openShared(url, handlers, controller) {
	if (controller.signal.aborted) return;
	const types = ["message", "error", ...(handlers.types ?? [])];
	const address = new URL(url, globalThis.document?.baseURI ?? location.href).href;
	const name = `sse ${address}`;
	const ended = new AbortController();
	const { signal } = ended;
	const isShared = Boolean(globalThis.navigator?.locks && globalThis.BroadcastChannel);
	const channel = isShared ? new BroadcastChannel(name) : undefined;

	/** Of the last event; all tabs count alike. -1: unknown. */
	let number = -1;
	let lastEventId = "";
	let isReading = false;
	let isOpen = false;

	signal.addEventListener("abort", () => channel?.close());
	controller.signal.addEventListener("abort", () => ended.abort());
	if (channel) channel.onmessage = ({ data }) => receive(data);
	channel?.postMessage({ kind: "join" });
	if (isShared) waitForLock();
	else read();

	function waitForLock() {
		const whileLocked = async () => {
			if (signal.aborted) return;
			read();
			await new Promise((release) => signal.addEventListener("abort", release));
		};
		navigator.locks.request(name, { signal }, whileLocked).catch((error) => {
			if (!signal.aborted) throw error;
		});
	}

	/** @param {Message | Join} message from another tab */
	function receive(message) {
		if (message.kind === "join") isReading && channel?.postMessage(state());
		// The stream of this tab begins after the last event that the tab has handled: what the tab that read before has
		// sent since comes again.
		else if (!isReading) handle(message);
	}

	/** @returns {Message} */
	function state() {
		return { kind: "state", number, lastEventId, isOpen };
	}

	/** Sends a message to the other tabs, and handles it in this one. @param {Message} message */
	function publish(message) {
		if (signal.aborted) return;
		channel?.postMessage(message);
		try {
			handle(message);
		} catch (error) {
			reportError(error); // a handler of this tab must not end the stream of the others
		}
	}

	/** @param {Message} message */
	function handle(message) {
		if (message.kind === "state") return adopt(message);
		// The tab that reads may have been behind this one when it began.
		const isOld = message.number < number || (message.kind === "event" && message.number === number);
		if (!isOld) ({ number, lastEventId } = message);
		else if (message.kind === "event") return;
		isOpen = message.kind === "open" || (isOpen && message.kind !== "reconnect");
		call(message);
	}

	/** Takes the position of the tab that reads if this tab has none, or if the stream starts over. @param {Message & { kind: "state" }} message */
	function adopt(message) {
		if (number < 0 || !message.lastEventId) ({ number, lastEventId } = message);
		if (!message.isOpen || isOpen) return;
		isOpen = true;
		handlers.onOpen?.();
	}

	/** @param {Exclude<Message, { kind: "state" }>} message */
	function call(message) {
		if (message.kind === "error") ended.abort();
		if (message.kind === "event") types.includes(message.event.type) && handlers.onEvent?.(message.event);
		else if (message.kind === "open") handlers.onOpen?.();
		else if (message.kind === "reconnect") handlers.onReconnect?.(message.error && newError(message.error));
		else if (message.kind === "error" && message.error) handlers.onError?.(newError(message.error));
	}

	function read() {
		isReading = true;
		isOpen = false;
		number = Math.max(number, 0);
		channel?.postMessage(state());
		const position = () => ({ number, lastEventId });
		const connection = fetchSSE(
			address,
			{ reconnect: true, fetch: open },
			{
				onOpen: () => publish({ kind: "open", ...position() }),
				onReconnect: (error) => publish({ kind: "reconnect", ...position(), error: error && factsOf(error) }),
				onError: (error) => publish({ kind: "error", ...position(), error: factsOf(error) }),
				onDone: () => publish({ kind: "error", ...position(), error: { code: "connection_lost" } }), // as openSSE
			},
		);
		signal.addEventListener("abort", () => connection.controller.abort());
	}

	/** Fetches, and reads along: the first event ID may come without an event. @param {string} target @param {RequestInit} init */
	async function open(target, init) {
		const headers = new Headers(init.headers);
		if (lastEventId) headers.set("Last-Event-ID", encode(lastEventId));
		const response = await fetch(target, { ...init, headers });
		if (!response.ok || !response.body || response.status === 204) return response;
		const reader = response.body.getReader();
		const feed = newFeed();
		/** @type {UnderlyingDefaultSource<Uint8Array>} */
		const source = {
			async pull(to) {
				const { done, value } = await reader.read();
				if (done) return to.close();
				to.enqueue(value);
				feed(value);
			},
			cancel: (reason) => reader.cancel(reason),
		};
		// Nothing is read ahead, so that `onOpen` comes before the first event.
		return new Response(new ReadableStream(source, { highWaterMark: 0 }), response);
	}

	/** Returns what publishes the events of one connection, byte for byte. */
	function newFeed() {
		const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
		const parser = createParser({
			lastEventId,
			onEvent: (event) =>
				publish({ kind: "event", number: number + 1, lastEventId: event.lastEventId, event: { ...event } }),
		});
		return (/** @type {Uint8Array} */ bytes) => {
			parser.feed(decoder.decode(bytes, { stream: true }));
			const { lastEventId: id } = parser;
			if (id !== lastEventId) publish({ kind: "id", number, lastEventId: id });
		};
	}
}

/** Returns what an error has to say, as a BroadcastChannel takes it. @param {Facts} error @returns {Facts} */
const factsOf = ({ code, status, retryAfter, body }) => ({ code, status, retryAfter, body });

/** @param {Facts} facts @returns {import("./sse.js").SSEError} */
const newError = (facts) => Object.assign(new Error(facts.code), { name: "SSEError", ...facts });

/** "encoded as UTF-8": fetch takes a string of bytes. @param {string} text */
const encode = (text) => Array.from(new TextEncoder().encode(text), (byte) => String.fromCharCode(byte)).join("");
