/**
 * What the page knows of language models: examples of their calls, and where in their events the text is. Pure.
 */

const JSON_TYPE = "application/json";

/** A path and a model that work at once, for upstreams that are named as one would. */
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

/** The examples: each makes what the form holds, from what is known of the upstream and a question to ask. */
export const PRESETS = {
	openai: {
		title: "OpenAI",
		call: ({ chat = "v1/chat/completions", model = "gpt-4o-mini" }, question) => ({
			path: chat,
			fields: { "Content-Type": JSON_TYPE },
			body: { model, stream: true, messages: [{ role: "user", content: question }] },
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

/** A message's content is text, or a list of parts of which some are. */
const join = (content) =>
	Array.isArray(content)
		? content.map((part) => part?.text ?? "").join("")
		: typeof content === "string"
			? content
			: "";

/**
 * The text and the thought that one event holds, and whether its dialect may repeat what came before it.
 *
 * @param {string} data
 * @returns {{ text?: string, thought?: string, repeats?: boolean }}
 */
function read(data) {
	if (data === "[DONE]") return {};
	let value;
	try {
		value = JSON.parse(data);
	} catch {}
	if (value === null || typeof value !== "object") return { text: `${data}\n` }; // plain text: a line
	const { output } = value;
	const choice = value.choices?.[0] ?? output?.choices?.[0];
	const part = choice?.delta ?? choice?.message; // OpenAI's, DashScope's
	if (part) return { text: join(part.content), thought: join(part.reasoning_content), repeats: Boolean(output) };
	if (output) return { text: join(output.text), repeats: true };
	if (value.type === "content_block_delta") {
		return { text: value.delta?.text, thought: value.delta?.thinking }; // Anthropic's
	}
	if (value.message || "response" in value) {
		return { text: join(value.message?.content ?? value.response), thought: join(value.message?.thinking) }; // Ollama's
	}
	// Anthropic's other events and whole answers, and OpenAI's usage, say so; JSON of no known dialect is shown as it is.
	return { text: ["type", "choices", "content"].some((name) => name in value) ? join(value.content) : `${data}\n` };
}

/**
 * Makes a reader that is given the events of one stream and tells all the text so far.
 *
 * @param {boolean} [incremental] whether DashScope was asked for what is new in each event; undefined: find out
 */
export function createReader(incremental) {
	const all = { text: "", thought: "" };
	return ({ type, data }) => {
		if (type === "error") return all;
		const { repeats, ...parts } = read(data);
		for (const [name, part] of Object.entries(parts)) {
			if (!part) continue;
			const isWhole = repeats && (incremental === undefined ? part.startsWith(all[name]) : !incremental);
			all[name] = isWhole ? part : all[name] + part;
		}
		return all;
	};
}

/** The kind of answer that a content type tells: "events", "lines" (NDJSON), "text", or "" for none of these. */
export function kindOf(type) {
	const essence = type.split(";")[0].trim().toLowerCase();
	if (essence === "text/event-stream") return "events";
	if (/^application\/(x-)?(ndjson|jsonl|json-lines|stream\+json)$/.test(essence)) return "lines";
	return /^(text\/plain|application\/(.+\+)?json)$/.test(essence) ? "text" : "";
}

/** A stream that tells another kind of answer as events: each line of NDJSON is one, a text is one when it is whole. */
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
