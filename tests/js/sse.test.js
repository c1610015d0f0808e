/** The parser and fetchSSE under node; test_browser.py runs the table in Chromium, with EventSource as the oracle. */
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { after, before, describe, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
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
		const start = process.cpuUsage();
		const pieces = ["data: ", ...Array(8192).fill("x".repeat(1024)), "\n\n"];
		assert.equal(parse(pieces).events[0].data.length, 8 * 1024 * 1024);
		assert.ok(process.cpuUsage(start).user < 2e6); // quadratic: 32 GB copied, about 10 s
	});
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

	/** Runs one stream to its end and returns in which order the handlers were called. */
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

	test("an upstream's own error event on a stream that completes is an event", async () => {
		for (const data of ['{"code": "x", "message": "m"}', '{"error": {"code": "x"}}', '{"code": 500}', "x"]) {
			const { names } = await run({}, stream(`event: error\ndata: ${data}\n\n`));
			assert.deepEqual(names, ["onOpen", "onEvent", "onDone"], data);
		}
	});

	// Some engines take a body that broke off for one that ended, so its end is looked at as well.
	test("the gateway's error event is an error even where the body seems to be whole", async () => {
		const { names, last } = await run({}, stream('data: 1\n\nevent: error\ndata: {"code": "idle_timeout"}\n\n'));
		assert.deepEqual(names, ["onOpen", "onEvent", "onEvent", "onError"]);
		assert.deepEqual([last.code, last.status], ["idle_timeout", 200]);
	});

	for (const rest of ["data: 2", "data: 2\n", "data", "id: 5\r\n", "event: x\r", "retry: 5\n: x\n"]) {
		test(`a stream that ends inside an event, after ${JSON.stringify(rest)}, is not complete`, async () => {
			const { names, last } = await run({}, stream(`data: 1\n\n${rest}`));
			assert.deepEqual(names, ["onOpen", "onEvent", "onError"]);
			assert.deepEqual([last.code, last.status], ["connection_lost", 200]);
		});
	}

	test("a stream that ends inside a character is not complete", async () => {
		const { last } = await run({}, stream(Buffer.from("data: 1\n\n流").subarray(0, -1)));
		assert.equal(last.code, "connection_lost");
	});

	for (const rest of ["", ":", ": comment", ":\n", "\n\n", "data: 2\r\n\r"]) {
		test(`a stream that ends between two events, with ${JSON.stringify(rest)}, is complete`, async () => {
			const { names } = await run({}, stream(`data: 1\n\n${rest}`));
			assert.equal(names.at(-1), "onDone");
		});
	}

	test("a cut where the connection was to be closed anyway is not complete", async () => {
		for (const text of ['data: 1\n\nevent: error\ndata: {"code": "draining"}\n\n', "data: 1\n\ndata: 2"]) {
			const { last } = await run({}, (request, response) => {
				response.writeHead(200, { ...STREAM, Connection: "close" });
				response.write(text, () => setTimeout(() => response.destroy(), 20));
			});
			assert.equal(last.code, text.includes("error") ? "draining" : "connection_lost");
		}
	});

	for (const [type, isStream] of [
		["text/event-stream, text/event-stream", true],
		["text/html, text/event-stream", true],
		['text/html;a="b,c", TEXT/Event-Stream ;x="a,b"', true],
		["text/event-stream\t;x", true],
		["text/event-stream, */*", true],
		["text/event-stream,", true],
		["text/event-stream, text/html", false],
		["text/event-streams", false],
		["text/html;a=text/event-stream", false],
		["application/octet-stream", false],
	]) {
		test(`the type ${type} is ${isStream ? "one" : "none"} of an event stream`, async () => {
			const { names, last } = await run({}, (request, response) =>
				response.writeHead(200, { "Content-Type": type }).end("data: 1\n\n"),
			);
			assert.equal(names.at(-1), isStream ? "onDone" : "onError");
			if (!isStream) assert.equal(last.code, "not_event_stream");
		});
	}

	test("the URL alone is enough", async () => {
		const gone = new Promise((closed) => {
			answer = (request, response) => stream("data: 1\n\n")(request, response.on("finish", closed));
		});
		requests = [];
		fetchSSE(base);
		await gone;
		assert.equal(requests[0].method, "GET");
	});

	test("the caller's own Accept stays", async () => {
		await run({ headers: { accept: "application/x-ndjson, text/event-stream" } }, stream(""));
		assert.equal(requests[0].headers.accept, "application/x-ndjson, text/event-stream");
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

	test("a refusal of the upstream has its status and body, and none of the codes of the gateway", async () => {
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

	for (const [value, want] of [
		["120", 120],
		["0", 0],
		[new Date(Date.now() + 3_600_000).toUTCString(), 3600],
		["Sun, 06 Nov 1994 08:49:37 GMT", 0],
		...["-5", "1.5", "0x10", "1e3", "soon", "Infinity", "Wed, never GMT", ""].map((value) => [value]),
	]) {
		test(`Retry-After: ${value || "(nothing)"} is ${want === undefined ? "ignored" : `${want} s`}`, async () => {
			const { last } = await run({}, (request, response) => response.writeHead(503, { "Retry-After": value }).end());
			if (want) assert.ok(Math.abs(last.retryAfter - want) < 60, String(last.retryAfter));
			else assert.equal(last.retryAfter, want);
		});
	}

	test("a peer that never answers is noticed", async () => {
		const { names, last } = await run({ connectTimeout: 100 }, () => {});
		assert.deepEqual(names, ["onError"]);
		assert.deepEqual([last.code, last.status], ["connect_timeout", undefined]);
	});

	test("a stream that falls silent is noticed, and its connection closed", async () => {
		let closed;
		const gone = new Promise((resolve) => (closed = resolve));
		const { names, last } = await run({ idleTimeout: 100, connectTimeout: 5000 }, (request, response) => {
			response.on("close", closed).writeHead(200, STREAM).write("data: 1\n\n");
		});
		assert.deepEqual(names, ["onOpen", "onEvent", "onError"]);
		assert.deepEqual([last.code, last.status], ["read_timeout", 200]);
		await gone;
	});

	test("every byte counts as a sign of life, and a slow head is not silence", async () => {
		const { names } = await run({ idleTimeout: 700 }, async (request, response) => {
			await sleep(900);
			response.writeHead(200, STREAM).flushHeaders();
			for (const byte of ":\n:\n:\n") await sleep(200, response.write(byte));
			response.end();
		});
		assert.deepEqual(names, ["onOpen", "onDone"]);
	});

	test("what came while the page was frozen is read before it counts as silence", async () => {
		const { names } = await run(
			{ idleTimeout: 1000 },
			(request, response) => {
				response.writeHead(200, STREAM).write("data: 1\n\n");
				setTimeout(() => response.end("data: 2\n\n"), 50);
			},
			{ onEvent: ({ data }) => data === "1" && setImmediate(freeze) },
		);
		assert.deepEqual(names, ["onOpen", "onEvent", "onEvent", "onDone"]);

		/** For longer than the limit no timer runs and nothing is read; the server sends as soon as it is over. */
		function freeze() {
			const end = performance.now() + 1200;
			while (performance.now() < end);
		}
	});

	test("a peer that falls silent is left, and asked again, with reconnect", async () => {
		const { names, calls } = await run({ reconnect: true, idleTimeout: 100 }, (request, response, nth) => {
			if (nth === 1) response.writeHead(200, STREAM).write("retry: 1\nid: 7\ndata: 1\n\n");
			else response.writeHead(204).end();
		});
		assert.deepEqual(names, ["onOpen", "onEvent", "onReconnect", "onDone"]);
		assert.equal(calls[2][1].code, "read_timeout");
		assert.equal(requests[1].headers["last-event-id"], "7");
	});

	test("waits grow with each failure in a row up to 30 s, and no two are alike", async () => {
		const { setTimeout: wait } = globalThis;
		const waits = [];
		globalThis.setTimeout = (done, time, ...rest) => {
			const isOurs = new Error().stack.includes("/sse.js");
			if (isOurs) waits.push(time);
			return wait(done, isOurs ? 1 : time, ...rest);
		};
		await run({ reconnect: true }, (request, response, nth) => {
			if (nth === 1) stream("data: 1\n\n")(request, response);
			else if (nth < 9) response.destroy();
			else response.writeHead(204).end();
		});
		globalThis.setTimeout = wait;
		const least = [3, 3, 6, 12, 24, 30, 30, 30].map((seconds) => seconds * 1000);
		assert.equal(waits.length, least.length);
		for (const [index, time] of waits.entries()) {
			assert.ok(time >= least[index] && time <= least[index] + Math.min(least[index], 5000), `${waits}`);
		}
		assert.ok(new Set(waits.map((time, index) => time - least[index])).size > 1, `${waits}`);
	});

	test("a clean end is no failure: the wait does not grow", async () => {
		const { names } = await run({ reconnect: true }, (request, response, nth) => {
			if (nth < 12) stream("retry: 1\n\n")(request, response);
			else response.writeHead(204).end();
		});
		assert.equal(names.filter((name) => name === "onReconnect").length, 11);
	});

	test("an ID of 10 kB is sent, and one that is refused is an error", async () => {
		const id = "流".repeat(3400);
		const { last } = await run({ reconnect: true }, (request, response, nth) => {
			if (nth === 1) stream(`retry: 1\nid: ${id}\ndata: 1\n\n`)(request, response);
			else response.writeHead(431).end();
		});
		assert.equal(Buffer.from(requests[1].headers["last-event-id"], "latin1").toString(), id);
		assert.deepEqual([last.code, last.status], ["http_error", 431]);
	});

	test("an ID of 300 kB does not end in a stack that overflows", async () => {
		const sent = [];
		const send = async (url, init) => {
			sent.push(init.headers.get("Last-Event-ID"));
			if (sent.length > 1) return new Response(null, { status: 204 });
			return new Response(`retry: 1\nid: ${"x".repeat(300_000)}\ndata: 1\n\n`, { headers: STREAM });
		};
		await run({ reconnect: true, fetch: send }, () => {});
		assert.equal(sent[1].length, 300_000);
	});

	test("no timer is left when onReconnect aborts", async () => {
		const script = `
			import { fetchSSE } from "${MODULE}";
			const { controller } = fetchSSE("${base}", { reconnect: true }, { onReconnect: () => controller.abort() });
		`;
		answer = (request, response) => response.writeHead(503, { "Retry-After": "3600" }).end();
		// With a timer of an hour the process would not end.
		await promisify(execFile)(process.execPath, ["--input-type=module", "--eval", script], { timeout: 10_000 });
	});

	test("the caller's signal keeps no listener of the client", async () => {
		const own = new AbortController();
		const counts = { add: 0, remove: 0 };
		for (const name of Object.keys(counts)) {
			const inherited = own.signal[`${name}EventListener`];
			own.signal[`${name}EventListener`] = function (...args) {
				if (!new Error().stack.includes("undici")) counts[name]++;
				inherited.apply(this, args);
			};
		}
		await run({ signal: own.signal }, stream("data: 1\n\n"));
		await sleep(1);
		assert.deepEqual(counts, { add: 1, remove: 1 });
	});

	test("a signal that was aborted before calls nothing", async () => {
		requests = [];
		const handlers = Object.fromEntries(["onOpen", "onDone", "onError"].map((name) => [name, () => assert.fail(name)]));
		const { controller } = fetchSSE(base, { signal: AbortSignal.abort("mine") }, handlers);
		await sleep(50);
		assert.deepEqual([controller.signal.reason, requests.length], ["mine", 0]);
	});

	test("what came after the promised browsers is not needed", async () => {
		const script = `
			import { fetchSSE } from "${MODULE}";
			for (const name of ["any", "timeout"]) delete AbortSignal[name];
			for (const name of ["TextDecoderStream", "TransformStream"]) delete globalThis[name];
			delete ReadableStream.prototype[Symbol.asyncIterator];
			delete Promise.withResolvers;
			const { signal } = new AbortController();
			fetchSSE("${base}", { signal, idleTimeout: 5000 }, { onDone: () => console.log("done") });
		`;
		answer = stream("data: 1\n\n");
		const { stdout } = await promisify(execFile)(process.execPath, ["--input-type=module", "--eval", script]);
		assert.equal(stdout, "done\n");
	});

	for (const [name, send] of Object.entries({
		"throws at once": () => {
			throw new TypeError("mine");
		},
		rejects: () => Promise.reject(new TypeError("mine")),
		"rejects without a reason": () => Promise.reject(undefined),
	})) {
		test(`a fetch that ${name} is an error`, async () => {
			const { names, last } = await run({ fetch: send }, () => {});
			assert.deepEqual([names, last.code], [["onError"], "connection_failed"]);
			if (last.cause) assert.equal(last.cause.message, "mine");
		});
	}

	for (const [name, send] of Object.entries({
		"takes a URL and an init alone": (url, init) => fetch(new URL(url), { ...init, headers: [...init.headers] }),
		"gives a thenable": (url, init) => ({ then: (yes, no) => fetch(url, init).then(yes, no) }),
		"gives a body that is an async iterable": async (url, init) => {
			const { body, headers, ok, status } = await fetch(url, init);
			return { body: { [Symbol.asyncIterator]: () => body[Symbol.asyncIterator]() }, headers, ok, status };
		},
	})) {
		test(`a fetch that ${name} is enough`, async () => {
			const { names } = await run({ fetch: send, headers: { "X-A": "1" } }, stream("data: 1\n\n"));
			assert.deepEqual(names, ["onOpen", "onEvent", "onDone"]);
			assert.equal(requests[0].headers["x-a"], "1");
		});
	}

	test("a fetch that does not know of the signal is left all the same", async () => {
		for (const [limits, want] of [
			[{ connectTimeout: 50 }, "connect_timeout"],
			[{ idleTimeout: 50 }, "read_timeout"],
		]) {
			const { last } = await run({ ...limits, fetch: (url) => fetch(url) }, (request, response) => {
				if (want === "read_timeout") response.writeHead(200, STREAM).write("data: 1\n\n");
			});
			assert.equal(last.code, want);
		}
		server.closeAllConnections();
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

	test("a custom fetch is called with the URL as it was given, and what fetch takes beside it", async () => {
		const asked = [];
		const { names } = await run(
			{ method: "POST", body: "{}", fetch: (url, init) => (asked.push([url, init.method]), fetch(url, init)) },
			stream("data: 1\n\n"),
		);
		assert.deepEqual(names, ["onOpen", "onEvent", "onDone"]);
		assert.deepEqual(asked, [[base, "POST"]]);
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
