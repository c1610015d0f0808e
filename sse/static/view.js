/** One call: what came of it and when, and how the page shows that, once a frame. */

import { Growing, renderMarkdown } from "./answer.js";
import { asEvents, createReader, kindOf, messageOf } from "./dialect.js";
import { $, all, follow, make, number, press, Rows, setText } from "./element.js";
import { word } from "./language.js";
import { drawPlot, duration } from "./plot.js";
import { eventRow, pieceRow, pretty, SHOWN_BYTES } from "./row.js";

const SHOWN_EVENTS = 500;
const SHOWN_PIECES = 300;
const KEPT_TIMES = 8192; // of events, for the plot
const KEPT_CALLS = 8;
const WORK = 12; // ms of reading after which a frame may be painted

const events = new Rows($("list"), eventRow, SHOWN_EVENTS);
const pieces = new Rows($("raw"), pieceRow, SHOWN_PIECES);
const text = new Growing($("text"));
const thought = new Growing($("thought"));
const followAnswer = follow($("reading"));

/** Lets what waits in the browser have its turn. */
const pause = () => new Promise((done) => setTimeout(done));

/** One call and all that is known of it; the page shows one at a time. */
export class Call {
	/**
	 * @param {string} label its entry in the table of calls
	 * @param {boolean} [incremental] see createReader
	 */
	constructor(label, incremental) {
		this.label = label;
		this.incremental = incremental;
		this.start = performance.now();
		this.state = "waiting"; // or "streaming", "reconnecting", "complete", "aborted", "error"
		this.count = 0; // of events
		this.times = []; // of events: { time, wait }, ms
		this.bytes = 0;
		this.read = createReader(incremental);
		this.answer = { text: "", thought: "" };
		this.decoder = new TextDecoder("utf-8", { ignoreBOM: true });
	}

	get isOver() {
		return !["waiting", "streaming", "reconnecting"].includes(this.state);
	}

	/** Milliseconds since it was sent, until it was over. */
	now() {
		return this.total ?? performance.now() - this.start;
	}

	/** Tokens in a second, from the first event to the last. */
	get rate() {
		const time = this.count > 1 && this.times.at(-1).time - this.began;
		return time && this.answer.output ? (this.answer.output / time) * 1000 : undefined;
	}

	/** fetch, watched: every byte is seen, and an answer that is not of events is made one that is. */
	async fetch(url, init) {
		const response = await fetch(url, init);
		if (init.method === "PATCH") return response; // the end of a kept stream
		this.status = response.status;
		this.fields = [...response.headers];
		const { body, headers, ok, status } = response;
		if (!body || !ok) return response;
		const kind = kindOf(headers.get("Content-Type") ?? "");
		const watched = { getReader: () => this.watch(body.getReader()) };
		if (!kind || kind === "events") return { body: watched, headers, ok, status, url: response.url };
		const fields = { "Content-Type": "text/event-stream" };
		return new Response(asStream(watched).pipeThrough(asEvents(kind)), { status, headers: fields });
	}

	/** A reader that notes what it reads, and lets frames be painted in between however much comes at once. */
	watch(reader) {
		let since = performance.now();
		let isDropped = false;
		this.drop = () => reader.cancel((isDropped = true));
		const read = async () => {
			if (performance.now() - since > WORK) {
				await pause();
				since = performance.now();
			}
			const piece = await reader.read();
			if (isDropped) throw new TypeError("the connection was dropped");
			if (!piece.done && !this.isOver) this.piece(piece.value);
			return piece;
		};
		return { read, cancel: () => reader.cancel() };
	}

	piece(bytes) {
		this.time = this.now();
		this.first ??= this.time;
		if (!this.isOver) this.state = "streaming";
		this.bytes += bytes.length;
		const decoded = this.decoder.decode(bytes, { stream: true });
		const kept = { bytes: bytes.slice(0, SHOWN_BYTES), text: decoded.slice(0, SHOWN_BYTES), size: bytes.length };
		pieces.add({ ...kept, time: this.time });
	}

	event(event) {
		const time = this.time ?? this.now(); // when its bytes came
		this.began ??= time;
		const wait = this.times.length ? time - this.times.at(-1).time : 0;
		this.times.push({ time, wait });
		this.count++;
		if (wait > (this.gap ? this.gap.to - this.gap.from : 0)) this.gap = { from: time - wait, to: time };
		if (this.times.length > KEPT_TIMES) this.times = thin(this.times);
		this.answer = this.read(event);
		const { added, isThought } = this.answer;
		events.add({ index: this.count, time, event, added, isThought });
	}

	end(state, error) {
		if (this.isOver) return;
		this.total = this.now();
		this.state = state;
		this.error = error;
		this.endedAt = Date.now();
	}
}

/** Of two neighbours the one with the longer wait: the plot stays the same at the width of a screen. */
const thin = (times) =>
	times.filter((one, index) => {
		const other = times[index ^ 1];
		return !other || (index & 1 ? one.wait > other.wait : one.wait >= other.wait) || index === times.length - 1;
	});

function asStream(source) {
	const reader = source.getReader();
	return new ReadableStream({
		async pull(controller) {
			const { done, value } = await reader.read();
			if (done) controller.close();
			else controller.enqueue(value);
		},
		cancel: reader.cancel,
	});
}

/** Takes away what the call before has left. */
export function clearCall() {
	for (const part of [events, pieces, text, thought]) part.clear();
	$("head").replaceChildren();
	$("rendered").replaceChildren();
	followAnswer(true);
}

/** Brings the page up to date with a call; returns whether something is waiting for the next frame. */
export function showCall(call) {
	showMeasures(call);
	const { state, error, isOver, answer } = call;
	if (isOver && document.activeElement === $("stop")) $("send").focus();
	$("stop").disabled = isOver;
	$("drop").hidden = isOver || !call.connection?.location;
	$("continue").hidden = true;
	document.body.dataset.running = String(!isOver);
	if (call.fields && !$("head").hasChildNodes()) showFields(call.fields);
	setText($("note"), "");
	$("reasoning").hidden = !answer.thought;
	const isGrowing = [thought.show(answer.thought), text.show(answer.text)].includes(true);
	const isWaiting = [isGrowing, events.flush(), pieces.flush(8)].includes(true);
	$("text").dataset.streaming = String(state === "streaming");
	$("answer-tools").hidden = !answer.text;
	if (error) showFailure(call);
	$("failure").hidden = !error;
	if ($("rendered").hidden || !isOver) followAnswer();
	if (isOver && !isWaiting) showMarkdown(call);
	showPlot(call);
	return isWaiting;
}

const orDash = (value, format = number) => (value === undefined ? "–" : format(value));

function showMeasures(call) {
	const { state, error, first, gap, answer } = call;
	const label = state === "error" ? error.code : word(state);
	setText($("end"), label);
	$("end").dataset.end = state;
	document.title = `${label} – flask-sse-relay`;
	setText($("status"), orDash(call.status, String));
	setText($("first"), orDash(first, duration));
	setText($("events"), number(call.count));
	setText($("bytes"), number(call.bytes));
	setText($("gap"), orDash(gap && gap.to - gap.from, duration));
	setText($("duration"), duration(call.now()));
	const { input, output, finish } = answer;
	for (const [id, value] of Object.entries({
		tokens: output === undefined ? "" : input === undefined ? number(output) : `${number(input)} → ${number(output)}`,
		rate: call.isOver && call.rate ? number(Math.round(call.rate)) : "",
		finish: finish ?? "",
	})) {
		$(id).parentElement.hidden = !value;
		setText($(id), value);
	}
}

function showFields(fields) {
	$("head").replaceChildren(...fields.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
}

/** The upstream's own message comes first, then whose refusal it is, and when it makes sense to ask again. */
function showFailure({ error, endedAt }) {
	const message = messageOf(error.body ?? "");
	const status = error.status >= 400 ? `${error.status} ` : "";
	setText($("failure-title"), message || `${status}${error.code}`);
	setText(
		$("failure-hint"),
		[message && `${status}${error.code}`, word("errors")[error.code]].filter(Boolean).join(" · "),
	);
	const left = Math.ceil(error.retryAfter - (Date.now() - endedAt) / 1000);
	setText($("failure-wait"), left > 0 ? word("wait")(number(left)) : "");
	$("failure-more").hidden = !error.body;
	setText($("failure-body"), pretty(error.body ?? ""));
}

/** Whether a refusal's time is still running down on the page. */
export const isCountingDown = ({ error, endedAt }) => Date.now() - endedAt < (error?.retryAfter ?? 0) * 1000 + 1000;

/** Shows the answer as Markdown, if that is chosen; else as the text that came. */
export async function showMarkdown(call) {
	const isMarkdown = document.body.dataset.answer === "markdown" && call.isOver && call.answer.text;
	press("answer", document.body.dataset.answer ?? "text");
	if (isMarkdown && !$("rendered").hasChildNodes()) {
		$("rendered").replaceChildren(make("p", {}, "…"));
		$("rendered").replaceChildren(...(await renderMarkdown(call.answer.text)));
	}
	$("rendered").hidden = !isMarkdown;
	$("text").hidden = Boolean(isMarkdown);
}

/** Adds a call that is over to the table of the last ones. */
export function noteCall(call) {
	const cells = [
		call.label,
		call.state === "error" ? call.error.code : word(call.state),
		orDash(call.first, duration),
		orDash(call.gap && call.gap.to - call.gap.from, duration),
		duration(call.now()),
		number(call.count),
		orDash(call.rate, (rate) => number(Math.round(rate))),
	];
	$("calls").prepend(
		make("tr", {}, ...cells.map((cell, index) => make(index ? "td" : "th", index ? {} : { scope: "row" }, cell))),
	);
	if ($("calls").childElementCount > KEPT_CALLS) $("calls").lastElementChild.remove();
	$("no-calls").hidden = true;
	all("#pane-calls table")[0].hidden = false;
}

/** @param {Call | null} call null before the first one */
export function showPlot(call) {
	const now = call ? call.now() : 0;
	const { times, first, gap, state, count } = call ?? { times: [], state: "", count: 0 };
	const isOver = call?.isOver ?? true;
	const cut = state === "error" || state === "aborted" ? state : "";
	drawPlot($("plot"), { first, times, count, now, isOver, cut, gap }, { axis: word("axis") });
	const facts = {
		events: number(count),
		duration: duration(now),
		first: orDash(first, duration),
		gap: orDash(gap && gap.to - gap.from, duration),
	};
	$("plot").setAttribute("aria-label", call?.isOver ? word("plotted")(facts) : word("axis"));
}
