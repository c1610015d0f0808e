/** Streams that the gateway keeps, read by sse.js from a server that answers as the gateway does. */
import assert from "node:assert/strict";
import { createServer } from "node:http";
import { after, before, beforeEach, describe, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";

import { createParser, fetchSSE, resumeSSE } from "../../sse/static/sse.js";

/** Every kind of line end, a byte order mark in two places, characters of two to four bytes, comments, IDs. */
const TEXT =
	"\uFEFFid: 1\r\ndata: é\r\ndata: 流\r\n\r\n: x\n\uFEFFdata: no\nevent: 流\ndata: 🙂\n\n\ndata: a\r\rid: 2\rdata: b\r\n\ndata: c\n\n";
const BODY = Buffer.from(TEXT);
const STREAM = { "Content-Type": "text/event-stream" };
const POST = {
	method: "POST",
	body: "{}",
	resume: 60,
	headers: { "X-Passcode": "p", "Content-Type": "application/json" },
};

function parse(text) {
	const events = [];
	createParser({ onEvent: (event) => events.push(event) }).feed(text);
	return events;
}
const EVENTS = parse(TEXT);

/** The recording: what is kept of it, and what each request gets. */
let kept;
let requests;
let base;
let server;

/** The gateway's answer to one who reads. */
function tail(response, offset) {
	if (kept.refuse) return kept.refuse(response);
	const isRead = offset === kept.body.length && kept.end;
	if (isRead && kept.end !== "complete") {
		const fields = { "Content-Type": "application/problem+json", "Stream-End": kept.end };
		return response.writeHead(410, fields).end('{"code": "stream_interrupted"}');
	}
	response.writeHead(200, { ...STREAM, ...(isRead && { "Stream-Closed": "true" }) });
	send(response, offset);
}

/** Sends from `offset` on, as far as the first of the cuts, if there is one. */
function send(response, offset) {
	const cut = kept.cuts.shift();
	const end = cut === undefined ? undefined : Math.max(offset, cut);
	const isCut = end !== undefined || kept.end !== "complete";
	const finish = () => (isCut ? setTimeout(() => response.destroy(), 1) : response.end());
	response.write(kept.body.subarray(offset, end), finish);
	if (offset === (end ?? kept.body.length)) response.flushHeaders(finish());
}

function answer(request, response) {
	const url = new URL(request.url, base);
	requests.push({ method: request.method, url, headers: request.headers });
	if (request.method === "POST") {
		const place = { Location: kept.place, "Stream-Next-Offset": "0".repeat(16), "Stream-TTL": kept.ttl };
		response.writeHead(200, { ...STREAM, ...(kept.place && place) });
		return send(response, 0);
	}
	if (request.method === "PATCH") return response.writeHead(kept.stop ?? 204).end();
	assert.equal(url.searchParams.get("live"), "tail");
	tail(response, Number(url.searchParams.get("offset")));
}

/** Runs a stream to its end, and returns the calls of its handlers. */
function run(open, handlers = {}) {
	return new Promise((resolve) => {
		const calls = { events: [], errors: [], opened: 0, offsets: [] };
		const end = (name) => (error) => resolve({ ...calls, end: name, code: error?.code, error, connection });
		const connection = open({
			onOpen: () => calls.opened++,
			onEvent: (event) => {
				calls.events.push(event);
				calls.offsets.push(connection.offset);
				handlers.onEvent?.(event, connection, end("stopped"));
			},
			onReconnect: (error) => calls.errors.push(error?.code),
			onDone: end("done"),
			onError: end("error"),
		});
	});
}

const post = (init = {}, handlers) =>
	run((own) => fetchSSE(`${base}upstream/llm/chat`, { ...POST, ...init }, own), handlers);
const methods = () => requests.map(({ method }) => method);

before(async () => {
	// The waits between two connections are not what is tested here.
	const wait = globalThis.setTimeout;
	globalThis.setTimeout = (done, time, ...rest) => wait(done, time > 400 ? time / 20 : time, ...rest);
	server = createServer(answer);
	await new Promise((listening) => server.listen(0, "127.0.0.1", listening));
	base = `http://127.0.0.1:${server.address().port}/`;
});
after(() => {
	server.closeAllConnections();
	server.close();
});
beforeEach(() => {
	kept = { body: BODY, cuts: [], end: "complete", place: "/ai/streams/abc", ttl: 60 };
	requests = [];
});

describe("a lost connection", () => {
	test("is continued wherever it was cut, without a seam", async () => {
		const cuts = Array.from({ length: BODY.length + 1 }, (_, at) => at);
		await Promise.all(
			cuts.map(async (cut) => {
				// Each has a `fetch` of its own, so that all can run side by side.
				const asked = [];
				const send = async (url, init) => {
					asked.push(init.method);
					const offset = Number(new URL(url).searchParams.get("offset"));
					const isFirst = init.method === "POST";
					const body = new ReadableStream({
						start(controller) {
							const piece = BODY.subarray(offset, isFirst ? cut : undefined);
							if (piece.length) controller.enqueue(new Uint8Array(piece));
							if (!isFirst) controller.close();
						},
						pull(controller) {
							controller.error(new TypeError("network error"));
						},
					});
					const isClosed = offset === BODY.length && { "Stream-Closed": "true" };
					return new Response(body, {
						headers: { ...STREAM, ...isClosed, ...(isFirst && { Location: "/streams/a" }) },
					});
				};
				const { events, end, connection } = await post({ fetch: send });
				assert.deepEqual([end, events, connection.offset], ["done", EVENTS, BODY.length], `cut at ${cut}`);
				assert.equal(asked.filter((method) => method === "POST").length, 1);
			}),
		);
	});

	test("is continued over a real socket as often as it is cut", async () => {
		kept.cuts = [3, 20, 20, 21, 47];
		const { events, end, errors, opened, connection } = await post();
		assert.deepEqual([end, events], ["done", EVENTS]);
		assert.ok(errors.length >= 4 && errors.every((code) => code === "connection_lost"), errors.join());
		assert.equal(opened, errors.length + 1);
		assert.deepEqual(methods().slice(0, 2), ["POST", "GET"]);
		assert.equal(connection.location, `${base}ai/streams/abc`);
	});

	test("is continued with the caller's credentials, and without what was for the POST", async () => {
		kept.cuts = [20];
		await post();
		const { headers, url } = requests[1];
		assert.deepEqual(
			[headers["x-passcode"], headers["content-type"], headers["stream-ttl"]],
			["p", undefined, undefined],
		);
		assert.deepEqual(
			[requests[0].headers["stream-ttl"], url.pathname, url.searchParams.get("offset")],
			["60", "/ai/streams/abc", "20"],
		);
	});

	test("is continued while the gateway restarts or is busy", async () => {
		kept.cuts = [20];
		const answers = [[502], [503, { "Retry-After": "0" }], [429]];
		kept.refuse = (response) => {
			response.writeHead(...answers.shift()).end();
			if (!answers.length) kept.refuse = undefined;
		};
		const { events, end, errors } = await post();
		assert.deepEqual([end, events], ["done", EVENTS]);
		assert.deepEqual(errors, ["connection_lost", "http_error", "http_error", "http_error"]);
	});

	test("is continued after silence too", async () => {
		const send = (url, init) => (init.method === "POST" ? fetch(`${base}`, { ...init }) : fetch(url, init));
		kept.cuts = [20];
		const destroy = server.listeners("request")[0];
		server.removeAllListeners("request");
		server.on("request", (request, response) => {
			if (request.method === "POST") response.destroy = () => {};
			destroy(request, response);
		});
		const { events, end, errors } = await post({ idleTimeout: 100, fetch: send });
		server.removeAllListeners("request");
		server.on("request", answer);
		assert.deepEqual([end, events, errors], ["done", EVENTS, ["read_timeout"]]);
	});

	test("is an error where the gateway keeps nothing", async () => {
		kept.place = undefined;
		kept.cuts = [20];
		const { end, code, connection } = await post();
		assert.deepEqual([end, code, connection.location, methods()], ["error", "connection_lost", undefined, ["POST"]]);
	});

	test("is an error when nothing has come for as long as the stream is kept", async () => {
		kept.ttl = 1;
		kept.cuts = [20];
		kept.refuse = (response) => response.destroy();
		const { end, code, errors } = await post();
		assert.deepEqual([end, code], ["error", "connection_failed"]);
		assert.ok(errors.length >= 1);
	});

	test("never has the request sent again, even where no answer came", async () => {
		const { end, code } = await post({ fetch: async () => Promise.reject(new TypeError("offline")) });
		assert.deepEqual([end, code], ["error", "connection_failed"]);
	});

	test("does not take the credentials to another origin", async () => {
		kept.place = "http://127.0.0.1:1/streams/abc";
		kept.cuts = [20];
		const { code, connection } = await post();
		assert.deepEqual([code, connection.location, methods()], ["connection_lost", undefined, ["POST"]]);
	});
});

describe("the end of a stream that is kept", () => {
	test("is believed when the recording says so: an engine may take a cut for an end", async () => {
		// As WebKit does: the body breaks off, and ends for the script.
		const send = async (url, init) => {
			const { body, headers, status } = await fetch(url, init);
			const pieces = new TransformStream();
			body.pipeTo(pieces.writable, { preventAbort: true }).catch(() => pieces.writable.close());
			return new Response(pieces.readable, { headers, status });
		};
		kept.cuts = [BODY.indexOf("\n\n") + 2, 20];
		const { events, end } = await post({ fetch: send });
		assert.deepEqual([end, events], ["done", EVENTS]);
	});

	test("is an error if the recording was cut, even where the body seemed to be whole", async () => {
		kept.end = "upstream_truncated";
		const send = async (url, init) => {
			if (init.method !== "POST") return fetch(url, init);
			return new Response(BODY, { headers: { ...STREAM, Location: "/ai/streams/abc" } });
		};
		const { events, end, code } = await post({ fetch: send });
		assert.deepEqual([end, code, events], ["error", "upstream_truncated", EVENTS]);
	});

	test("is the upstream's when it was cut", async () => {
		kept.end = "upstream_truncated";
		const { events, end, code, error } = await post();
		assert.deepEqual([end, code, error.status, events], ["error", "upstream_truncated", 410, EVENTS]);
	});

	test("is an error if the recording is complete inside an event", async () => {
		kept.body = Buffer.from("data: 1\n\ndata: 2");
		const { end, code } = await post();
		assert.deepEqual([end, code], ["error", "connection_lost"]);
	});

	test("is complete with what the upstream says in an error event of its own", async () => {
		kept.body = Buffer.from('event: error\ndata: {"code": "mine"}\n\n');
		const { end, events } = await post();
		assert.deepEqual([end, events.length], ["done", 1]);
	});

	test("stays complete if the recording is gone by then", async () => {
		for (const [status, code] of [
			[404, "stream_not_found"],
			[410, "stream_expired"],
		]) {
			const fields = { "Content-Type": "application/problem+json" };
			kept.refuse = (response) => response.writeHead(status, fields).end(JSON.stringify({ code }));
			assert.equal((await post()).end, "done");
			kept.cuts = [20];
			assert.equal((await post()).code, code);
		}
	});
});

describe("resumeSSE", () => {
	test("goes on after any event, for offset is its end when its handler is called", async () => {
		const { offsets } = await post();
		assert.equal(offsets.length, EVENTS.length);
		for (const [index, offset] of [0, ...offsets].entries()) {
			const again = await run((handlers) => resumeSSE(`${base}ai/streams/abc`, offset, handlers));
			const plain = ({ type, data }) => [type, data];
			assert.deepEqual([again.end, again.events.map(plain)], ["done", EVENTS.slice(index).map(plain)]);
		}
	});

	test("begins at the end of an event, never inside one", async () => {
		for (const [end, blank] of [
			["\r\n", "\r\n\r\n"],
			["\n", "\n\n"],
			["\r", "\r\r"],
		]) {
			kept.body = Buffer.from(`data: a${blank}data: b${end}`);
			kept.end = "";
			const { connection } = await post({}, { onEvent: (event, it, end) => setTimeout(end, 30) });
			connection.controller.abort();
			assert.equal(connection.offset, `data: a${blank}`.length, JSON.stringify(end));
		}
	});

	test("takes a byte order mark in the middle for what it is", async () => {
		kept.body = Buffer.from("data: a\n\n\uFEFFdata: b\n\ndata: c\n\n");
		const { events } = await run((handlers) => resumeSSE(`${base}ai/streams/abc`, 9, handlers));
		assert.deepEqual(
			events.map(({ data }) => data),
			["c"],
		);
	});

	test("goes on where a handler has aborted", async () => {
		const first = await post(
			{},
			{ onEvent: (event, { controller }, end) => event.data === "a" && end(controller.abort()) },
		);
		assert.deepEqual(first.events, EVENTS.slice(0, 3));
		const { location, offset } = first.connection;
		const { events } = await run((handlers) => resumeSSE(location, offset, handlers));
		assert.deepEqual(
			events.map(({ data }) => data),
			EVENTS.slice(3).map(({ data }) => data),
		);
	});

	test("sends what the gateway knows the caller by", async () => {
		await run((handlers) => resumeSSE(`${base}ai/streams/abc`, 0, handlers, { headers: { "X-Passcode": "p" } }));
		assert.equal(requests[0].headers["x-passcode"], "p");
	});

	test("reports what the gateway refuses", async () => {
		const fields = { "Content-Type": "application/problem+json" };
		kept.refuse = (response) => response.writeHead(404, fields).end('{"code": "stream_not_found"}');
		const { end, code, error } = await run((handlers) => resumeSSE(`${base}ai/streams/none`, 0, handlers));
		assert.deepEqual([end, code, error.status], ["error", "stream_not_found", 404]);
	});
});

describe("stop", () => {
	async function stopped() {
		kept.cuts = [BODY.length];
		kept.end = "";
		let left;
		const { connection } = await post(
			{},
			{ onEvent: (event, it, end) => (left = end) && event.data === "c" && left() },
		);
		return connection;
	}

	test("aborts here and at the gateway, and calls no handler", async () => {
		const connection = await stopped();
		await connection.stop();
		const { method, url, headers } = requests.find((request) => request.method === "PATCH");
		assert.deepEqual([method, url.pathname + url.search], ["PATCH", "/ai/streams/abc?action=abort"]);
		assert.equal(headers["x-passcode"], "p");
		assert.ok(connection.controller.signal.aborted);
	});

	test("rejects if the gateway refuses", async () => {
		const connection = await stopped();
		kept.stop = 404;
		await assert.rejects(connection.stop(), { name: "SSEError", code: "http_error", status: 404 });
	});

	test("only aborts where nothing is kept", async () => {
		kept.place = undefined;
		const connection = await stopped();
		await connection.stop();
		await sleep(20);
		assert.ok(connection.controller.signal.aborted && !methods().includes("PATCH"));
	});
});
