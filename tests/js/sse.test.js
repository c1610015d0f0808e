/** The parser and fetchSSE under node; test_browser.py runs the table in Chromium, with EventSource as the oracle. */
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { readFileSync, statSync } from "node:fs";
import { createServer } from "node:http";
import { after, before, describe, test } from "node:test";
import { promisify } from "node:util";

import { createParser, fetchSSE } from "../../sse/static/sse.js";

const CASES = JSON.parse(readFileSync(new URL("format.json", import.meta.url), "utf8"));
const MODULE = new URL("../../sse/static/sse.js", import.meta.url);
const STREAM = { "Content-Type": "text/event-stream" };

function parse(pieces) {
	const events = [];
	const retry = [];
	const parser = createParser({ onEvent: (event) => events.push(event), onRetry: (time) => retry.push(time) });
	for (const piece of pieces) parser.feed(piece);
	return { events, retry, lastEventId: parser.lastEventId };
}

/** Every way to cut a text in two, then every character alone, then with empty pieces between. */
function* splits(text) {
	yield [text];
	for (let at = 1; at < text.length; at++) yield [text.slice(0, at), text.slice(at)];
	yield text.split("");
	yield text.split("").flatMap((character) => ["", character, ""]);
}

describe("the parser", () => {
	for (const { name, stream, events, retry, lastEventId, contentType } of CASES) {
		if (contentType && events.length === 0) continue; // refused before anything is parsed
		test(name, () => {
			for (const pieces of splits(stream)) {
				const result = parse(pieces);
				assert.deepEqual(result.events, events, JSON.stringify(pieces));
				if (retry) assert.deepEqual(result.retry, retry);
				if (lastEventId !== undefined) assert.equal(result.lastEventId, lastEventId);
			}
		});
	}

	test("an event is dispatched with the very character that ends it", () => {
		for (const end of ["\n\n", "\r\r", "\r\n\r"]) {
			const events = [];
			const parser = createParser({ onEvent: (event) => events.push(event.data) });
			parser.feed(`data: x${end}`);
			assert.deepEqual(events, ["x"], JSON.stringify(end));
		}
	});

	test("a stream that is taken up again keeps its last event ID", () => {
		const events = [];
		const parser = createParser({ onEvent: (event) => events.push(event), lastEventId: "41" });
		parser.feed("data: x\n\n");
		assert.deepEqual(events, [{ type: "message", data: "x", lastEventId: "41" }]);
		assert.equal(parser.lastEventId, "41");
	});

	test("a line of 8 MB in small pieces takes linear time", () => {
		const start = performance.now();
		const pieces = ["data: ", ...Array(8192).fill("x".repeat(1024)), "\n\n"];
		assert.equal(parse(pieces).events[0].data.length, 8 * 1024 * 1024);
		assert.ok(performance.now() - start < 2000); // quadratic: 32 GB copied, about 10 s
	});
});

test("sse.js is under 6 kB", () => {
	assert.ok(statSync(MODULE).size < 6000);
});

describe("fetchSSE", () => {
	let server;
	let base;
	let answer;
	let requests;

	before(async () => {
		server = createServer((request, response) => {
			requests.push(request);
			answer(request, response, requests.length);
		});
		await new Promise((listening) => server.listen(0, "127.0.0.1", listening));
		base = `http://127.0.0.1:${server.address().port}/`;
	});
	after(() => {
		server.closeAllConnections();
		server.close();
	});

	/** Runs one stream to its end and tells in which order the handlers were called. */
	async function run(init, respond, handlers = {}) {
		answer = respond;
		requests = [];
		const calls = [];
		let connection;
		await new Promise((end) => {
			const record = (name, last) => (argument) => {
				calls.push(argument === undefined ? [name] : [name, argument]);
				handlers[name]?.(argument, connection, end);
				if (last) end();
			};
			connection = fetchSSE(base, init, {
				onOpen: record("onOpen"),
				onEvent: record("onEvent"),
				onReconnect: record("onReconnect"),
				onDone: record("onDone", true),
				onError: record("onError", true),
			});
		});
		return {
			calls,
			names: calls.map(([name]) => name),
			last: calls.at(-1)?.[1],
			controller: connection.controller,
		};
	}

	const stream = (text) => (request, response) => response.writeHead(200, STREAM).end(text);
	const cut = (text) => (request, response) => {
		response.writeHead(200, STREAM);
		response.write(text, () => response.destroy());
	};

	for (const { name, stream: text, events, contentType } of CASES) {
		test(name, async () => {
			const fields = { "Content-Type": contentType ?? "text/event-stream" };
			const { calls } = await run({}, (request, response) => response.writeHead(200, fields).end(text));
			assert.deepEqual(
				calls.filter(([call]) => call === "onEvent").map(([, event]) => event),
				events,
			);
		});
	}

	test("a stream that completes is done", async () => {
		const { names } = await run({}, stream("data: 1\n\n"));
		assert.deepEqual(names, ["onOpen", "onEvent", "onDone"]);
	});

	test("asks for an event stream, with the method, fields and body it was given", async () => {
		const init = { method: "POST", headers: { "X-Passcode": "p" }, body: "{}" };
		let body = "";
		await run(init, async (request, response) => {
			for await (const piece of request) body += piece;
			stream("")(request, response);
		});
		assert.equal(requests[0].method, "POST");
		assert.equal(requests[0].headers.accept, "text/event-stream");
		assert.equal(requests[0].headers["x-passcode"], "p");
		assert.equal(body, "{}");
	});

	test("a cut is an error", async () => {
		const { names, last } = await run({}, cut("data: 1\n\ndata: 2"));
		assert.deepEqual(names, ["onOpen", "onEvent", "onError"]);
		assert.equal(last.code, "connection_lost");
		assert.equal(last.status, 200);
		assert.ok(last instanceof Error && last.cause instanceof Error);
	});

	test("the gateway's last event names the cause of the cut", async () => {
		const { names, last } = await run({}, cut('data: 1\n\nevent: error\ndata: {"code": "idle_timeout"}\n\n'));
		assert.deepEqual(names, ["onOpen", "onEvent", "onEvent", "onError"]);
		assert.equal(last.code, "idle_timeout");
	});

	test("an error event with other events after it does not", async () => {
		const { last } = await run({}, cut('event: error\ndata: {"code": "idle_timeout"}\n\ndata: 1\n\n'));
		assert.equal(last.code, "connection_lost");
	});

	for (const data of ["oops", "null", "{}", "[1]", "{"]) {
		test(`an upstream's own error event with the data ${data} does no harm`, async () => {
			const { last } = await run({}, cut(`event: error\ndata: ${data}\n\n`));
			assert.equal(last.code, "connection_lost");
		});
	}

	test("an error event on a stream that completes is an event", async () => {
		const { names } = await run({}, stream('event: error\ndata: {"code": "x"}\n\n'));
		assert.deepEqual(names, ["onOpen", "onEvent", "onDone"]);
	});

	test("a refusal of the gateway has its code", async () => {
		const { names, last } = await run({}, (request, response) =>
			response
				.writeHead(429, { "Content-Type": "application/problem+json", "Retry-After": "7" })
				.end(JSON.stringify({ status: 429, code: "throttled" })),
		);
		assert.deepEqual(names, ["onError"]);
		assert.deepEqual([last.code, last.status, last.retryAfter], ["throttled", 429, 7]);
	});

	test("a refusal of the upstream has its status and body, and no code of ours", async () => {
		const body = JSON.stringify({ code: "unauthenticated" });
		for (const type of ["application/json", "application/problem+json"]) {
			const { last } = await run({}, (request, response) =>
				response.writeHead(401, { "Content-Type": type, "X-Upstream-Status": "401" }).end(body),
			);
			assert.deepEqual([last.code, last.status, last.body], ["http_error", 401, body]);
		}
	});

	test("a refusal that is cut, or is not what it says, is still one error", async () => {
		const fields = { "Content-Type": "application/problem+json", "Content-Length": "10" };
		const { names, last } = await run({}, (request, response) => {
			response.writeHead(502, fields);
			response.write("{", () => response.destroy());
		});
		assert.deepEqual(names, ["onError"]);
		assert.deepEqual([last.code, last.status], ["http_error", 502]);
	});

	test("an answer that is no event stream is an error, and is not read", async () => {
		let closed;
		const gone = new Promise((resolve) => (closed = resolve));
		const { names, last } = await run({}, (request, response) => {
			response.writeHead(200, { "Content-Type": "text/html" });
			response.write("<p>");
			response.on("close", closed);
		});
		assert.deepEqual(names, ["onError"]);
		assert.deepEqual([last.code, last.status], ["not_event_stream", 200]);
		await gone;
	});

	test("no answer at all is an error without a status", async () => {
		const { names, last } = await run({}, (request, response) => response.destroy());
		assert.deepEqual(names, ["onError"]);
		assert.deepEqual([last.code, last.status], ["connection_failed", undefined]);
	});

	test("204 is done", async () => {
		const { names } = await run({}, (request, response) => response.writeHead(204).end());
		assert.deepEqual(names, ["onDone"]);
	});

	test("abort is neither done nor an error, and nothing is called after it", async () => {
		const { calls, names } = await run(
			{},
			(request, response) => {
				response.writeHead(200, STREAM).write("data: 1\n\ndata: 2\n\n");
				response.on("close", () => response.emit("left"));
				response.on("left", () => setImmediate(left));
			},
			{
				onEvent(event, { controller }, end) {
					left = end;
					controller.abort();
				},
			},
		);
		assert.deepEqual(names, ["onOpen", "onEvent"]);
		assert.equal(calls[1][1].data, "1");
	});
	let left;

	test("the caller's own signal aborts it too", async () => {
		const own = new AbortController();
		const { names } = await run(
			{ signal: own.signal },
			(request, response) => {
				response.writeHead(200, STREAM).write("data: 1\n\n");
				response.on("close", () => setImmediate(left));
			},
			{
				onEvent(event, connection, end) {
					left = end;
					own.abort();
				},
			},
		);
		assert.deepEqual(names, ["onOpen", "onEvent"]);
	});

	test("a POST is sent once, whatever happens to it", async () => {
		for (const respond of [cut("retry: 1\nid: 1\ndata: 1\n\n"), (request, response) => response.destroy()]) {
			await run({ method: "POST", body: "{}" }, respond);
			await new Promise((resolve) => setTimeout(resolve, 50));
			assert.equal(requests.length, 1);
		}
	});

	for (const method of ["POST", "put", "DELETE", "HEAD"]) {
		test(`reconnect is refused for ${method}`, () => {
			assert.throws(() => fetchSSE(base, { method, reconnect: true }, {}), TypeError);
		});
	}

	test("without reconnect a GET is sent once too", async () => {
		await run({}, cut("retry: 1\ndata: 1\n\n"));
		await new Promise((resolve) => setTimeout(resolve, 50));
		assert.equal(requests.length, 1);
	});

	test("reconnect takes the stream up after the last complete event, until 204", async () => {
		const { names, calls } = await run({ reconnect: true }, (request, response, nth) => {
			if (nth === 1) cut("retry: 1\nid: 流\ndata: 1\n\nid: 2\ndata: lost")(request, response);
			else if (nth === 2) stream("data: 2\n\nid\ndata: 3\n\n")(request, response);
			else response.writeHead(204).end();
		});
		assert.deepEqual(names, [
			...["onOpen", "onEvent", "onReconnect"],
			...["onOpen", "onEvent", "onEvent", "onReconnect"],
			"onDone",
		]);
		const sent = requests.map(({ headers }) => headers["last-event-id"]);
		assert.deepEqual([sent[0], Buffer.from(sent[1], "latin1").toString(), sent[2]], [undefined, "流", undefined]);
		assert.equal(calls[4][1].lastEventId, "流");
		assert.equal(calls[2][1].code, "connection_lost");
		assert.equal(calls[6][1], undefined);
	});

	test("reconnect begins with the Last-Event-ID it was given", async () => {
		await run({ reconnect: true, headers: { "Last-Event-ID": "41" } }, (request, response, nth) => {
			if (nth === 1) stream("retry: 1\ndata: 1\n\n")(request, response);
			else response.writeHead(204).end();
		});
		assert.deepEqual(
			requests.map(({ headers }) => headers["last-event-id"]),
			["41", "41"],
		);
	});

	test("reconnect tries again where there was no answer, and stops at a refusal", async () => {
		const { names, last } = await run({ reconnect: true }, (request, response, nth) => {
			if (nth === 1) stream("retry: 1\n\n")(request, response);
			else if (nth === 2) response.destroy();
			else response.writeHead(404).end();
		});
		assert.deepEqual(names, ["onOpen", "onReconnect", "onReconnect", "onError"]);
		assert.deepEqual([last.code, last.status], ["http_error", 404]);
	});

	test("reconnect waits as long as a refusal's Retry-After says", async () => {
		const start = performance.now();
		const { names } = await run({ reconnect: true }, (request, response, nth) => {
			if (nth === 1) response.writeHead(503, { "Retry-After": "1" }).end();
			else response.writeHead(204).end();
		});
		assert.deepEqual(names, ["onReconnect", "onDone"]);
		assert.ok(performance.now() - start > 950);
	});

	test("a reconnection time beyond what a timer holds does not become none", async () => {
		const { controller } = await run({ reconnect: true }, stream("retry: 99999999999\ndata: 1\n\n"), {
			onReconnect: (error, connection, end) => setTimeout(end, 50),
		});
		assert.equal(requests.length, 1);
		controller.abort();
	});

	test("abort ends the wait for a reconnection", async () => {
		const { names } = await run({ reconnect: true }, stream("retry: 20\ndata: 1\n\n"), {
			onReconnect: (error, { controller }, end) => setTimeout(() => controller.abort(setTimeout(end, 50))),
		});
		assert.deepEqual(names, ["onOpen", "onEvent", "onReconnect"]);
		assert.equal(requests.length, 1);
	});

	test("a custom fetch is called with the request", async () => {
		const asked = [];
		const { names } = await run(
			{ fetch: (request) => (asked.push(request.url), fetch(request)) },
			stream("data: 1\n\n"),
		);
		assert.deepEqual(names, ["onOpen", "onEvent", "onDone"]);
		assert.deepEqual(asked, [base]);
	});

	test("what a handler throws is the page's, and the connection goes", async () => {
		const script = `
			import { fetchSSE } from "${MODULE}";
			process.on("uncaughtException", (error) => console.log(error.message));
			fetchSSE("${base}", {}, { onEvent() { throw new Error("mine"); } });
		`;
		const gone = new Promise((closed) => {
			answer = (request, response) => {
				response.writeHead(200, STREAM).write("data: 1\n\n");
				response.on("close", closed);
			};
		});
		requests = [];
		const { stdout } = await promisify(execFile)(process.execPath, ["--input-type=module", "--eval", script]);
		assert.equal(stdout, "mine\n");
		await gone;
	});
});
