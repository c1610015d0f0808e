/** What the page understands of each dialect, and what it copies. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";

import {
	asEvents,
	createReader,
	getString,
	guess,
	kindOf,
	messageOf,
	PRESETS,
	setString,
} from "../../sse/static/dialect.js";
import { SNIPPETS } from "../../sse/static/snippet.js";

/** The text and the thought after all of these data. */
function readAll(values, incremental) {
	const read = createReader(incremental);
	let all;
	for (const value of values)
		all = read({ type: "message", data: typeof value === "string" ? value : JSON.stringify(value) });
	return all;
}

const DIALECTS = {
	"OpenAI's chunks": [
		{ choices: [{ delta: { role: "assistant", content: "" } }] },
		{ choices: [{ delta: { content: "你" } }] },
		{ choices: [{ delta: { content: "好" } }] },
		{ choices: [{ delta: {}, finish_reason: "stop" }] },
		{ choices: [], usage: { total_tokens: 3 } },
		"[DONE]",
	],
	"OpenAI's whole answer": [{ choices: [{ message: { role: "assistant", content: "你好" } }] }],
	"parts of content": [
		{
			choices: [
				{
					message: {
						content: [
							{ type: "text", text: "你" },
							{ type: "text", text: "好" },
						],
					},
				},
			],
		},
	],
	"DashScope's text, all of it in each event": [
		{ output: { text: "你" } },
		{ output: { text: "你好" } },
		{ output: { text: "你好" } },
	],
	"DashScope's messages, all of it in each event": [
		{ output: { choices: [{ message: { content: "你" } }] } },
		{ output: { choices: [{ message: { content: "你好" } }] } },
	],
	"DashScope's messages, what is new in each event": [
		{ output: { choices: [{ message: { content: "你" } }] } },
		{ output: { choices: [{ message: { content: "好" } }] } },
		{ output: { choices: [{ message: { content: "" }, finish_reason: "stop" }] } },
	],
	"Anthropic's events": [
		{ type: "message_start", message: { content: [] } },
		{ type: "content_block_start", content_block: { type: "text", text: "" } },
		{ type: "ping" },
		{ type: "content_block_delta", delta: { type: "text_delta", text: "你" } },
		{ type: "content_block_delta", delta: { type: "text_delta", text: "好" } },
		{ type: "message_stop" },
	],
	"Anthropic's whole answer": [{ type: "message", content: [{ type: "text", text: "你好" }] }],
	"Ollama's chat": [
		{ message: { content: "你" } },
		{ message: { content: "好" } },
		{ message: { content: "" }, done: true },
	],
	"Ollama's generate": [{ response: "你" }, { response: "好", done: true }],
};

describe("the text of", () => {
	for (const [name, values] of Object.entries(DIALECTS)) test(name, () => assert.equal(readAll(values).text, "你好"));

	test("plain data is a line each", () =>
		assert.equal(readAll(["Message 0", "1", "null"]).text, "Message 0\n1\nnull\n"));
	test("JSON of no dialect is shown as it is", () => assert.equal(readAll([{ tick: 1 }]).text, '{"tick":1}\n'));
	test("an error event is none", () => assert.equal(createReader()({ type: "error", data: '{"code": "x"}' }).text, ""));
	test("a repetition that DashScope was asked not to make is text", () => {
		assert.equal(readAll([{ output: { text: "哈" } }, { output: { text: "哈哈" } }], true).text, "哈哈哈");
	});

	for (const [name, value] of Object.entries({
		DeepSeek: { choices: [{ delta: { content: null, reasoning_content: "hm" } }] },
		Anthropic: { type: "content_block_delta", delta: { type: "thinking_delta", thinking: "hm" } },
		Ollama: { message: { content: "", thinking: "hm" } },
	})) {
		test(`a thought of ${name} is not the answer`, () =>
			assert.deepEqual({ ...readAll([value]) }, { text: "", thought: "hm", added: "hm", isThought: true }));
	}
});

describe("what is reported:", () => {
	for (const [name, values] of Object.entries({
		"OpenAI's usage": [
			{ choices: [{ delta: { content: "a" }, finish_reason: null }], usage: null },
			{ choices: [{ delta: {}, finish_reason: "stop" }] },
			{ choices: [], usage: { prompt_tokens: 3, completion_tokens: 5 } },
		],
		"Anthropic's usage": [
			{ type: "message_start", message: { content: [], usage: { input_tokens: 3, output_tokens: 1 } } },
			{ type: "message_delta", delta: { stop_reason: "stop" }, usage: { output_tokens: 5 } },
		],
		"DashScope's usage": [
			{ output: { text: "a", finish_reason: "null" }, usage: { input_tokens: 3, output_tokens: 1 } },
			{ output: { text: "ab", finish_reason: "stop" }, usage: { input_tokens: 3, output_tokens: 5 } },
		],
		"Gemini's counts": [
			{ candidates: [{ content: {} }], usageMetadata: { promptTokenCount: 3 } },
			{ candidates: [{ finishReason: "stop" }], usageMetadata: { promptTokenCount: 3, candidatesTokenCount: 5 } },
		],
		"Ollama's counts": [
			{ message: { content: "a" }, done: false },
			{ message: { content: "" }, done: true, done_reason: "stop", prompt_eval_count: 3, eval_count: 5 },
		],
	})) {
		test(name, () => {
			const { input, output, finish } = readAll(values);
			assert.deepEqual([input, output, finish], [3, 5, "stop"]);
		});
	}

	test("OpenAI's usage of Responses", () => {
		const usage = { input_tokens: 3, output_tokens: 5 };
		const { input, output } = readAll([
			{ type: "response.created", response: { status: "in_progress", usage: null } },
			{ type: "response.completed", response: { status: "completed", usage } },
		]);
		assert.deepEqual([input, output], [3, 5]);
	});

	test("no count before there is one", () => {
		const { output, finish } = readAll([{ output: { text: "a", finish_reason: "null" } }]);
		assert.deepEqual([output, finish], [undefined, undefined]);
	});

	test("what each event adds, where the dialect repeats the whole too", () => {
		for (const [incremental, texts] of [
			[false, ["你", "你好", "你好"]],
			[true, ["你", "好", ""]],
		]) {
			const read = createReader(incremental);
			const added = texts.map((text) => read({ type: "message", data: JSON.stringify({ output: { text } }) }).added);
			assert.deepEqual(added, ["你", "好", ""]);
		}
	});
});

describe("the question and the model of a body", () => {
	const question = (text) => PRESETS.openai.call({ model: "m" }, text).body;
	for (const [name, { call }] of Object.entries(PRESETS)) {
		test(`are found and set in ${name}'s`, () => {
			const body = JSON.stringify(call({ model: "m" }, 'a "quoted"\nquestion').body, null, 2);
			assert.deepEqual([getString(body, "model"), getString(body, "question")], ["m", 'a "quoted"\nquestion']);
			const other = setString(setString(body, "question", '$& "another"'), "model", "n\\");
			assert.deepEqual([getString(other, "model"), getString(other, "question")], ["n\\", '$& "another"']);
			assert.deepEqual(JSON.parse(other), call({ model: "n\\" }, '$& "another"').body);
		});
	}

	test("are set without a change of what stands beside them", () => {
		const body = '{"seed": 12345678901234567890,   "model":"m", "messages": [{"content": "a"}, {"content": "b"}]}';
		assert.equal(setString(body, "question", "c"), body.replace('"b"', '"c"'));
	});

	test("are none where the body is not JSON, or has none", () => {
		for (const body of ["", "{", '{"model": 5}', "[]", JSON.stringify(question("q")).slice(1)]) {
			assert.equal(getString(body, "model"), undefined, body);
		}
	});
});

test("a refusal's message is found in every dialect", () => {
	for (const body of [
		{ error: { message: "no" } },
		{ type: "error", error: { type: "x", message: "no" } },
		{ code: "InvalidApiKey", message: "no" },
		{ error: "no" },
		{ type: "about:blank", title: "x", detail: "no" },
	]) {
		assert.equal(messageOf(JSON.stringify(body)), "no");
	}
	for (const body of ["", "<html>", "null", "[]", "5", '{"error": {}}', '{"message": {"a": 1}}'])
		assert.equal(messageOf(body), "", body);
});

test("every preset is a call that can be sent", () => {
	for (const upstream of ["demo", "tongyi", "my-deepseek", "claude", "ollama", "openai", "other"]) {
		const known = guess(upstream);
		assert.ok(known.preset in PRESETS);
		for (const { title, call } of Object.values(PRESETS)) {
			const { path, fields, body } = call(known, "question");
			assert.ok(title && !path.startsWith("/") && fields["Content-Type"] === "application/json");
			assert.match(JSON.stringify(body), /"model":"[^"]+".*question/);
		}
	}
});

test("content types are distinguished", () => {
	const kinds = {
		"text/event-stream;charset=UTF-8": "events",
		"application/x-ndjson": "lines",
		"application/json; charset=utf-8": "text",
		"application/problem+json": "text",
		"text/plain": "text",
		"text/html": "",
		"application/octet-stream": "",
		"": "",
	};
	assert.deepEqual(Object.fromEntries(Object.keys(kinds).map((type) => [type, kindOf(type)])), kinds);
});

for (const [kind, want] of Object.entries({
	lines: 'event: line\ndata: {"a":"你"}\n\nevent: line\ndata: {"b":2}\n\n',
	text: 'event: body\ndata: {"a":"你"}\ndata: \ndata: {"b":2}\n\n',
})) {
	test(`an answer of ${kind} becomes events, wherever it is cut`, async () => {
		const bytes = new TextEncoder().encode('{"a":"你"}\n\n{"b":2}');
		for (let at = 0; at <= bytes.length; at++) {
			const source = new ReadableStream({
				start(controller) {
					for (const piece of [bytes.slice(0, at), bytes.slice(at)]) controller.enqueue(piece);
					controller.close();
				},
			});
			assert.equal(await new Response(source.pipeThrough(asEvents(kind))).text(), want);
		}
	});
}

test("nothing in a call breaks out of its quotes", () => {
	const nasty = `'"\`$(x) \\ '''\n\${y} </script>`;
	const call = { url: "http://host/x?a='b'", method: "POST", headers: { "X-A": `it's "so"` }, body: nasty };
	assert.ok(SNIPPETS.curl(call, "").includes(`--data-raw '${nasty.replaceAll("'", "'\\''")}'`));
	for (const name of ["fetch", "sse.js", "Python"]) {
		assert.ok(SNIPPETS[name](call, "http://host/").includes(JSON.stringify(nasty)), name);
	}
});

test("a number that JavaScript cannot hold is copied as it is", () => {
	const body = '{"seed": 12345678901234567890}';
	const call = { url: "http://host/", method: "POST", headers: {}, body };
	assert.ok(SNIPPETS.fetch(call, "").includes(JSON.stringify(body)));
	assert.ok(SNIPPETS.fetch({ ...call, body: '{"a":1}' }, "").includes("JSON.stringify({"));
});
