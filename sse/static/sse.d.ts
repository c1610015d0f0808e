/**
 * Reads event streams (WHATWG HTML, section 9.2) in browsers, Node.js 20 and newer, Deno and Bun.
 *
 * Browsers: Safari 15.4, Chrome 100, Firefox 100 and newer. Nothing that came later is needed.
 */

/** An event, with the names of WHATWG's MessageEvent. */
export interface ServerSentEvent {
	/** The event type: the `event` field, or "message". */
	readonly type: string;
	readonly data: string;
	/** The last event ID of the stream when this event was dispatched: its own `id`, or an earlier one. */
	readonly lastEventId: string;
}

/** Why a stream ended that neither completed nor was aborted. */
export interface SSEError extends Error {
	/**
	 * - a code of the gateway: of its refusal (`throttled`, `unauthenticated`, ...), or of the `event: error` that it
	 *   sends just before it cuts a stream (`upstream_truncated`, `idle_timeout`, ...);
	 * - `http_error`: a response that is not 2xx and comes from the upstream: see `status` and `body`;
	 * - `not_event_stream`: a 2xx response with another content type;
	 * - `connection_failed`: no response (network, CORS, or what the `fetch` option threw: see `cause`);
	 * - `connect_timeout`: no response within `connectTimeout`;
	 * - `connection_lost`: the stream was cut for an unknown reason, or ended inside an event;
	 * - `read_timeout`: not a byte within `idleTimeout`.
	 */
	readonly code: string;
	/** The HTTP status, if there was a response and the browser gives it (EventSource does not). */
	readonly status?: number;
	/** Seconds, from the `Retry-After` field, which holds a number or a date; absent if it holds neither. */
	readonly retryAfter?: number;
	/** The body of a response that is not 2xx. */
	readonly body?: string;
	/** What fetch rejected with. */
	readonly cause?: unknown;
}

/**
 * A stream ends with exactly one of `onDone`, `onError`, or no call at all because its controller was aborted.
 * fetchSSE does not catch what a handler throws: it closes the connection, and the error is reported as unhandled.
 */
export interface Handlers {
	/** An event was dispatched. */
	onEvent?(event: ServerSentEvent): void;
	/** The stream is complete: it ended after a whole event. With `reconnect`: the server answered 204. */
	onDone?(): void;
	/** The stream could not be opened, or was cut, and will not be opened again. */
	onError?(error: SSEError): void;
	/** The stream ended, with `error` if it was cut, and will be opened again after a wait. */
	onReconnect?(error?: SSEError): void;
}

export interface FetchHandlers extends Handlers {
	/** The response is 2xx and an event stream. Called again after each reconnection. */
	onOpen?(response: Response): void;
}

export interface SourceHandlers extends Omit<Handlers, "onDone"> {
	/** Event types to receive beside `message` and `error`: EventSource cannot receive all. */
	types?: readonly string[];
	/**
	 * One tab reads for all tabs of the origin that open the same URL with `shared`; when it closes or aborts, another tab
	 * goes on with the last event ID. If the server resumes by that, no event is missing in a tab and none comes twice.
	 * Without Web Locks (which browsers have in secure contexts only: https, and http at localhost) or BroadcastChannel
	 * each tab reads a stream of its own. Loads `shared.js`, which must be served beside `sse.js`.
	 */
	shared?: boolean;
	/** The stream is open. Called again after each reconnection. */
	onOpen?(): void;
}

export interface ReadInit extends RequestInit {
	/**
	 * Milliseconds until the response must have begun; 0 or absent: no limit. Choose minutes for models that think.
	 *
	 * A browser opens six connections to a host at most over HTTP/1.1, for all tabs together: the seventh stream waits,
	 * without an error, until another one ends. This limit makes that visible; HTTP/2 in front of the server ends it.
	 */
	connectTimeout?: number;
	/**
	 * Milliseconds without a byte after which the connection counts as lost; 0 or absent: no limit. Comments count, so
	 * choose more than the server's heartbeat (15 s for the gateway's own streams).
	 */
	idleTimeout?: number;
	/** What to call instead of the global fetch. It may ignore the signal, and its body may be an async iterable. */
	fetch?: (url: string, init: RequestInit) => PromiseLike<Response>;
}

export interface FetchInit extends ReadInit {
	/**
	 * Open the stream again when it ends or is cut, with `Last-Event-ID`. The wait is the server's `retry` (3 s until it
	 * sends one), doubles with each failure up to 30 s, and is lengthened at random so that many clients do not come
	 * back at once; a refusal's `Retry-After` takes its place. A 204 and all other refusals end the stream. Only for
	 * GET: a POST is never sent twice, and fetchSSE throws a TypeError for one.
	 */
	reconnect?: boolean;
	/**
	 * Seconds for which the gateway should keep the stream after its end. If the gateway agrees, a lost connection is
	 * continued from the very byte at which it broke: no event is missing and none comes twice. The request is not sent
	 * again. Give credentials as header fields: continuing needs them too.
	 */
	resume?: number;
}

/** Aborting it ends the stream; that is neither done nor an error, and no handler is called any more. */
export interface Connection {
	readonly controller: AbortController;
}

/** A connection that may be continued. Keep `location` and `offset` in sessionStorage to go on after a reload. */
export interface FetchConnection extends Connection {
	/** Where the gateway keeps the stream; undefined until it has answered, and if it does not keep it. */
	readonly location: string | undefined;
	/** Bytes from the beginning of the stream to the end of the last event that was dispatched. */
	readonly offset: number;
	/**
	 * Aborts the connection and makes the gateway end the upstream's; what was received until then stays readable.
	 * Without `location` it only aborts. Rejects with an SSEError if the gateway refuses.
	 */
	stop(): Promise<void>;
}

/**
 * Opens an event stream by fetch: with any method, fields and body. `Accept` is `text/event-stream` unless you give one.
 *
 * @throws TypeError for header fields that fetch does not take, and for `reconnect` with a method other than GET.
 */
export function fetchSSE(url: string | URL, init?: FetchInit, handlers?: FetchHandlers): FetchConnection;

/**
 * Goes on with a stream that the gateway keeps, for instance after a reload.
 *
 * @param location the `location` of the earlier connection
 * @param offset its `offset`
 */
export function resumeSSE(
	location: string | URL,
	offset: number,
	handlers?: FetchHandlers,
	init?: ReadInit,
): FetchConnection;

/**
 * Opens an event stream by EventSource: a GET without header fields, which the browser opens again by itself.
 * `onError` is called when the browser has given up; EventSource does not say why, and a 204 looks like an error.
 */
export function openSSE(url: string | URL, handlers?: SourceHandlers): Connection;

export interface ParserOptions {
	onEvent(event: ServerSentEvent): void;
	/** The server has set the reconnection time, in milliseconds. */
	onRetry?(time: number): void;
	/** The last event ID to begin with, if an earlier stream is continued. */
	lastEventId?: string;
}

export interface Parser {
	/** Parses the next piece of the stream, decoded and cut anywhere. Leave a byte order mark in. */
	feed(text: string): void;
	/** The last event ID of the stream: the value for `Last-Event-ID` when it is opened again. */
	readonly lastEventId: string;
	/** Whether an event has begun and its blank line has not come: a stream that ends here is not complete. */
	readonly isInside: boolean;
}

/** Returns a parser of event streams (section 9.2.6), which dispatches an event as soon as its blank line ends. */
export function createParser(options: ParserOptions): Parser;
