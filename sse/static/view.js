/** One call: what came of it and when, and how the page shows that. */

import { asEvents, createReader, kindOf } from "./dialect.js";
import { $, make, number, setText } from "./element.js";
import { word } from "./language.js";
import { drawPlot, duration } from "./plot.js";
import { append, eventRow, isAtEnd, pieceRow, pretty } from "./row.js";

const SHOWN_EVENTS = 500;
const SHOWN_PIECES = 300;

/** One call and all that is known of it; the page shows one at a time. */
export class Call {
	/** @param {boolean} [incremental] see createReader */
	constructor(incremental) {
		this.start = performance.now();
		this.state = "waiting"; // or "streaming", "complete", "aborted", "error"
		this.times = []; // of events, ms since the start
		this.bytes = 0;
		this.read = createReader(incremental);
		this.text = { text: "", thought: "" };
		this.decoder = new TextDecoder("utf-8", { ignoreBOM: true });
	}

	get isOver() {
		return this.state !== "waiting" && this.state !== "streaming";
	}

	/** Milliseconds since it was sent, until it was over. */
	now() {
		return this.total ?? performance.now() - this.start;
	}

	/** fetch, watched: every byte is told, and an answer that is not of events is made one that is. */
	async fetch(url, init) {
		const response = await fetch(url, init);
		this.status = response.status;
		this.head(response);
		if (!response.body) return response;
		const kind = kindOf(response.headers.get("Content-Type") ?? "");
		const watch = new TransformStream({
			transform: (piece, out) => {
				this.piece(piece);
				out.enqueue(piece);
			},
		});
		const body = response.body.pipeThrough(watch);
		if (!response.ok || !kind || kind === "events") return new Response(body, response);
		const fields = { "Content-Type": "text/event-stream" };
		return new Response(body.pipeThrough(asEvents(kind)), { status: response.status, headers: fields });
	}

	head(response) {
		const rows = [...response.headers].map(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]);
		$("head").replaceChildren(...rows.flat());
	}

	piece(bytes) {
		const time = this.now();
		this.first ??= time;
		if (this.state === "waiting") this.state = "streaming";
		this.bytes += bytes.length;
		const caption = `+${duration(time)} · ${number(bytes.length)} B`;
		const text = this.decoder.decode(bytes, { stream: true });
		append($("raw"), pieceRow(caption, bytes, text), SHOWN_PIECES);
	}

	event(event) {
		const time = this.now();
		const before = this.times.at(-1);
		this.times.push(time);
		if (before !== undefined && time - before > (this.gap ? this.gap.to - this.gap.from : 0)) {
			this.gap = { from: before, to: time };
		}
		const had = this.text.text;
		this.text = { ...this.read(event) };
		const added = this.text.text.startsWith(had) ? this.text.text.slice(had.length) : "";
		append($("list"), eventRow(this.times.length, time, event, added), SHOWN_EVENTS);
	}

	end(state, error) {
		if (this.isOver) return;
		this.total = this.now();
		this.state = state;
		this.error = error;
	}
}

export function showCall(call) {
	const { state, error, times, first, gap, isOver } = call;
	setText($("end"), state === "error" ? error.code : word(state));
	$("end").dataset.end = state;
	setText($("status"), call.status ? String(call.status) : "–");
	setText($("first"), first === undefined ? "–" : duration(first));
	setText($("events"), number(times.length));
	setText($("bytes"), number(call.bytes));
	setText($("gap"), gap ? duration(gap.to - gap.from) : "–");
	setText($("duration"), duration(call.now()));
	if (isOver && document.activeElement === $("stop")) $("send").focus();
	$("stop").disabled = isOver;
	document.body.dataset.running = String(!isOver);

	const reading = $("reading");
	const follows = isAtEnd(reading);
	setText($("note"), "");
	setText($("thought"), call.text.thought);
	setText($("text"), call.text.text);
	$("text").dataset.streaming = String(!isOver);
	showFailure(error);
	if (follows && !isOver) reading.scrollTop = reading.scrollHeight;
	showPlot(call);
}

function showFailure(error) {
	$("failure").hidden = !error;
	if (!error) return;
	setText($("failure-title"), [error.status >= 400 ? error.status : "", error.code].filter(Boolean).join(" "));
	const hint = word("errors")[error.code] ?? "";
	setText($("failure-hint"), error.retryAfter ? `${hint} (Retry-After: ${error.retryAfter} s)` : hint);
	setText($("failure-body"), pretty(error.body ?? ""));
}

/** @param {Call | null} call null before the first one */
export function showPlot(call) {
	const now = call ? call.now() : 0;
	const { times, first, gap, state } = call ?? { times: [], state: "" };
	const isOver = call?.isOver ?? true;
	const cut = state === "error" || state === "aborted" ? state : "";
	drawPlot($("plot"), { first, times, now, isOver, cut, gap }, { axis: word("axis") });
	const facts = {
		events: number(times.length),
		duration: duration(now),
		first: first === undefined ? "–" : duration(first),
		gap: gap ? duration(gap.to - gap.from) : "–",
	};
	$("plot").setAttribute("aria-label", call?.isOver ? word("plotted")(facts) : word("axis"));
}
