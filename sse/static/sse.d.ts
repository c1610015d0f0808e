/** An event, as WHATWG's MessageEvent names its parts. */
export interface ServerSentEvent {
	/** The event type: the `event` field, or "message". */
	readonly type: string;
	readonly data: string;
	/** The last event ID of the stream when this event came: its own `id`, or the one before it. */
	readonly lastEventId: string;
}

/** What ended a stream that neither completed nor was aborted. */
export interface SSEError extends Error {
	/**
	 * - the gateway's own code: of its refusal (`throttled`, `unauthenticated`, ...), or of the `event: error` that it
	 *   sent just before a cut (`upstream_truncated`, `idle_timeout`, ...);
	 * - `http_error`: an answer that is not 2xx and not the gateway's, so the upstream's: see `status` and `body`;
	 * - `not_event_stream`: a 2xx of another content type;
	 * - `connection_failed`: no answer at all (network, CORS);
	 * - `connection_lost`: the stream was cut, and nobody said why.
	 */
	readonly code: string;
	/** The HTTP status, where there was an answer and the browser tells (EventSource does not). */
	readonly status?: number;
	/** Seconds, from the answer's `Retry-After`. */
	readonly retryAfter?: number;
	/** The body of an answer that is not 2xx. */
	readonly body?: string;
	/** What fetch rejected with. */
	readonly cause?: unknown;
}

/**
 * A stream ends with exactly one of: `onDone`, `onError`, or silence because its controller was aborted.
 * What a handler throws is not caught: fetchSSE lets go of the connection, and the error is reported as unhandled.
 */
export interface Handlers {
	/** A complete event has come. */
	onEvent?(event: ServerSentEvent): void;
	/** The stream ended and was not truncated; with `reconnect`, the server said 204. */
	onDone?(): void;
	/** The stream could not be opened, or was cut, and will not be opened again. */
	onError?(error: SSEError): void;
	/** The stream ended, with `error` if it was cut, and is opened again after the reconnection time. */
	onReconnect?(error?: SSEError): void;
}

export interface FetchHandlers extends Handlers {
	/** The answer is 2xx and an event stream. Called again after each reconnection. */
	onOpen?(response: Response): void;
}

export interface SourceHandlers extends Omit<Handlers, "onDone"> {
	/** Event types to listen to beside `message` and `error`: EventSource has no way to ask for all. */
	types?: readonly string[];
	/** The stream is open. Called again after each reconnection. */
	onOpen?(): void;
}

export interface FetchInit extends RequestInit {
	/**
	 * Open the stream again when it ends or is cut, with `Last-Event-ID`, after the server's `retry` (3 s until it says
	 * one) or a refusal's `Retry-After`. It stops at a 204 and at every other refusal. Only for GET: fetchSSE never sends
	 * a POST twice, and throws a TypeError if asked to.
	 */
	reconnect?: boolean;
	/** What to call instead of the global fetch. */
	fetch?: (request: Request) => Promise<Response>;
}

/** Aborting it ends the stream; that is neither done nor an error, and no handler is called any more. */
export interface Connection {
	readonly controller: AbortController;
}

/** Opens an event stream by fetch: any method, fields and body; the answer's status and content type are checked. */
export function fetchSSE(url: string | URL, init: FetchInit, handlers: FetchHandlers): Connection;

/**
 * Opens an event stream by EventSource: a GET without fields of its own, which the browser opens again by itself.
 * `onError` comes when the browser has given up; it does not tell why, and a 204 is told by it too.
 */
export function openSSE(url: string | URL, handlers: SourceHandlers): Connection;

export interface ParserOptions {
	onEvent(event: ServerSentEvent): void;
	/** The reconnection time has been set, in milliseconds. */
	onRetry?(time: number): void;
	/** The last event ID to begin with, when a stream is taken up again. */
	lastEventId?: string;
}

export interface Parser {
	/** Takes the next piece of the stream, decoded and cut anywhere. A byte order mark must be left in. */
	feed(text: string): void;
	/** The last event ID of the stream: what `Last-Event-ID` takes it up from. */
	readonly lastEventId: string;
}

/** Makes a parser of event streams: WHATWG HTML, section 9.2.6. It dispatches an event as soon as its blank line ends. */
export function createParser(options: ParserOptions): Parser;
