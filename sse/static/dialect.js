/**
 * Language models: examples of their calls, and what is in their events. Pure.
 */

const JSON_TYPE = "application/json";

/** A path and a model that work at once, for upstreams with the usual names. */
const KNOWN = [
	[
		/tongyi|dashscope|qwen|bailian/i,
		{ preset: "dashscope", chat: "compatible-mode/v1/chat/completions", model: "qwen-plus" },
	],
	[/deepseek/i, { preset: "openai", chat: "chat/completions", model: "deepseek-chat" }],
	[/anthropic|claude/i, { preset: "anthropic", model: "claude-sonnet-4-5" }],
	[/ollama/i, { preset: "ollama", model: "llama3.2" }],
	[/openai/i, { preset: "openai", model: "gpt-4o-mini" }],
	[/^demo$/, { preset: "openai", model: "demo" }],
];

/** @param {string} upstream its name in the table */
export const guess = (upstream) => KNOWN.find(([name]) => name.test(upstream))?.[1] ?? { preset: "openai" };

/** The examples: each returns what the form holds, from what is known of the upstream and a question. */
export const PRESETS = {
	openai: {
		title: "OpenAI",
		call: ({ chat = "v1/chat/completions", model = "gpt-4o-mini" }, question) => ({
			path: chat,
			fields: { "Content-Type": JSON_TYPE },
			body: {
				model,
				stream: true,
				stream_options: { include_usage: true },
				messages: [{ role: "user", content: question }],
			},
		}),
	},
	dashscope: {
		title: "DashScope",
		call: ({ model = "qwen-plus" }, question) => ({
			path: "api/v1/services/aigc/text-generation/generation",
			fields: { "Content-Type": JSON_TYPE, "X-DashScope-SSE": "enable" },
			body: {
				model,
				input: { messages: [{ role: "user", content: question }] },
				parameters: { result_format: "message", incremental_output: true },
			},
		}),
	},
	anthropic: {
		title: "Anthropic",
		call: ({ model = "claude-sonnet-4-5" }, question) => ({
			path: "v1/messages",
			fields: { "Content-Type": JSON_TYPE, "anthropic-version": "2023-06-01" },
			body: { model, max_tokens: 1024, stream: true, messages: [{ role: "user", content: question }] },
		}),
	},
	ollama: {
		title: "Ollama",
		call: ({ model = "llama3.2" }, question) => ({
			path: "api/chat",
			fields: { "Content-Type": JSON_TYPE },
			body: { model, messages: [{ role: "user", content: question }] },
		}),
	},
};

/** Where in the text of a body a string stands: the rest of the text is left as it was written. */
const PLACES = {
	model: /^([^]*?"model"\s*:\s*)("(?:[^"\\]|\\.)*")/,
	question: /^([^]*"(?:content|prompt)"\s*:\s*)("(?:[^"\\]|\\.)*")/, // the last one
};

/** Returns the model or the question of a body; undefined if the body is not JSON or has none. */
export function getString(body, name) {
	const found = isJSON(body) && body.match(PLACES[name]);
	return found ? JSON.parse(found[2]) : undefined;
}

export const setString = (body, name, text) =>
	body.replace(PLACES[name], (all, before) => before + JSON.stringify(text));

export const isJSON = (text) => parse(text) !== undefined;

function parse(text) {
	try {
		return JSON.parse(text);
	} catch {}
}

/** A message's content is text, or a list of parts of which some are text. */
const join = (content) =>
	Array.isArray(content)
		? content.map((part) => part?.text ?? "").join("")
		: typeof content === "string"
			? content
			: "";

/** Returns the text and the reasoning of one event, and whether its dialect may repeat what came before. */
function readText(value, data) {
	const { output } = value;
	const choice = value.choices?.[0] ?? output?.choices?.[0];
	const part = choice?.delta ?? choice?.message; // OpenAI's, DashScope's
	if (part)
		return {
			text: join(part.content),
			thought: join(part.reasoning_content ?? part.reasoning),
			repeats: Boolean(output),
		};
	if (output) return { text: join(output.text), repeats: true };
	if (value.type === "content_block_delta") {
		return { text: value.delta?.text, thought: value.delta?.thinking }; // Anthropic's
	}
	if ("response" in value || (value.message && !value.type)) {
		return { text: join(value.message?.content ?? value.response), thought: join(value.message?.thinking) }; // Ollama's
	}
	// Anthropic's other events and whole answers, and OpenAI's usage, are known; other JSON is shown as it is.
	return { text: ["type", "choices", "content"].some((name) => name in value) ? join(value.content) : `${data}\n` };
}

/** Returns what one event reports of the whole: tokens in and out, and why the model stopped. */
function readReport(value) {
	const usage = value.usage ?? value.message?.usage ?? value.response?.usage ?? {};
	const meta = value.usageMetadata ?? {}; // Gemini's, without what the model thought
	const choice = value.choices?.[0] ?? value.output?.choices?.[0] ?? value.output ?? {};
	const finish =
		choice.finish_reason ??
		value.delta?.stop_reason ??
		value.stop_reason ??
		value.done_reason ??
		value.candidates?.[0]?.finishReason;
	return {
		input: usage.prompt_tokens ?? usage.input_tokens ?? meta.promptTokenCount ?? value.prompt_eval_count,
		output: usage.completion_tokens ?? usage.output_tokens ?? meta.candidatesTokenCount ?? value.eval_count,
		finish: finish === "null" ? undefined : finish, // DashScope's
	};
}

/**
 * Returns a reader that gets the events of one stream and returns all that is known so far: `text`, `thought`, and
 * `input`, `output` (tokens) and `finish` where reported; and `added`, what this event brought.
 *
 * @param {boolean} [incremental] whether DashScope was requested to send only what is new in each event; undefined: find out
 */
export function createReader(incremental) {
	const all = { text: "", thought: "", added: "" };
	return ({ type, data }) => {
		all.added = "";
		if (type === "error" || data === "[DONE]") return all;
		const value = parse(data);
		const isObject = value !== null && typeof value === "object";
		const { repeats, ...parts } = isObject ? readText(value, data) : { text: `${data}\n` }; // plain text: a line
		for (const [name, part] of Object.entries(parts)) {
			if (!part) continue;
			const isWhole = repeats && (incremental === undefined ? part.startsWith(all[name]) : !incremental);
			all.added = isWhole && part.startsWith(all[name]) ? part.slice(all[name].length) : part;
			all.isThought = name === "thought";
			all[name] = isWhole ? part : all[name] + part;
		}
		if (isObject) for (const [name, found] of Object.entries(readReport(value))) if (found != null) all[name] = found;
		return all;
	};
}

/** Returns the message of a refusal, as OpenAI, Anthropic, DashScope, Ollama and RFC 9457 write it, or "". */
export function messageOf(body) {
	const value = parse(body) ?? {};
	const found = value.error?.message ?? value.message ?? value.detail ?? value.error ?? value.title;
	return typeof found === "string" ? found : "";
}

/** The kind of answer by its content type: "events", "lines" (NDJSON), "text", or "" for none of these. */
export function kindOf(type) {
	const essence = type.split(";")[0].trim().toLowerCase();
	if (essence === "text/event-stream") return "events";
	if (/^application\/(x-)?(ndjson|jsonl|json-lines|stream\+json)$/.test(essence)) return "lines";
	return /^(text\/plain|application\/(.+\+)?json)$/.test(essence) ? "text" : "";
}

/** A stream that makes events of another kind of answer: each line of NDJSON is one, a text is one when it is whole. */
export function asEvents(kind) {
	const decoder = new TextDecoder();
	const encoder = new TextEncoder();
	let rest = "";
	const encode = (text) => {
		const lines = text.split(/\r\n|\r|\n/).map((line) => `data: ${line}\n`);
		return encoder.encode(`event: ${kind === "lines" ? "line" : "body"}\n${lines.join("")}\n`);
	};
	return new TransformStream({
		transform(piece, out) {
			rest += decoder.decode(piece, { stream: true });
			if (kind !== "lines") return;
			const lines = rest.split("\n");
			rest = lines.pop();
			for (const line of lines) if (line.trim()) out.enqueue(encode(line));
		},
		flush(out) {
			if (rest.trim()) out.enqueue(encode(rest));
		},
	});
}
