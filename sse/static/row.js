/** The rows of the inspector: events, and bytes as they came. */

import { make, number } from "./element.js";
import { word } from "./language.js";
import { duration } from "./plot.js";

const SHOWN_BYTES = 4096; // of one piece

export const isAtEnd = (element) => element.scrollTop + element.clientHeight >= element.scrollHeight - 32;

/** Adds a row; of many, the earliest go. Whoever has scrolled up is left there. */
export function append(list, row, most) {
	const follows = isAtEnd(list);
	list.append(row);
	if (list.childElementCount > most) {
		list.firstElementChild.remove();
		list.dataset.gone = Number(list.dataset.gone ?? 0) + 1;
		list.dataset.earlier = word("earlier")(number(Number(list.dataset.gone)));
	}
	if (follows) list.scrollTop = list.scrollHeight;
}

export function eventRow(index, time, { type, data, lastEventId }, added) {
	const facts = [make("span", { className: "index" }, String(index)), make("time", {}, `+${duration(time)}`)];
	if (type !== "message") facts.push(make("b", { className: type === "error" ? "bad" : "" }, type));
	if (lastEventId) facts.push(make("span", {}, `id ${lastEventId}`));
	if (added.trim() && added.trim() !== data.trim()) facts.push(make("q", {}, JSON.stringify(added).slice(1, -1)));
	const summary = make(
		"summary",
		{},
		make("span", { className: "facts" }, ...facts),
		make("code", {}, data.slice(0, 300)),
	);
	const details = make("details", {}, summary);
	details.addEventListener("toggle", () => details.open && details.append(make("pre", {}, pretty(data))), {
		once: true,
	});
	return make("li", {}, details);
}

export function pretty(text) {
	try {
		return JSON.stringify(JSON.parse(text), null, 2);
	} catch {
		return text;
	}
}

export function pieceRow(caption, bytes, text) {
	const shown = bytes.subarray(0, SHOWN_BYTES);
	const cut = bytes.length > SHOWN_BYTES ? " …" : "";
	const ends = { "\r\n": "←↵\n", "\r": "←\n", "\n": "↵\n", "\uFEFF": "⟨BOM⟩" };
	const visible = text.slice(0, SHOWN_BYTES).replace(/\r\n|\r|\n|\uFEFF/g, (end) => ends[end]);
	return make(
		"div",
		{},
		make("span", { className: "facts" }, caption),
		make("pre", { className: "as-text" }, visible + cut),
		make("pre", { className: "as-hex" }, dump(shown) + cut),
	);
}

/** Eight bytes a line, for a narrow column. */
function dump(bytes) {
	const lines = [];
	for (let at = 0; at < bytes.length; at += 8) {
		const row = [...bytes.subarray(at, at + 8)];
		const hex = row.map((byte) => byte.toString(16).padStart(2, "0")).join(" ");
		const letters = row.map((byte) => (byte > 32 && byte < 127 ? String.fromCharCode(byte) : "·")).join("");
		lines.push(`${at.toString(16).padStart(4, "0")}  ${hex.padEnd(23)}  ${letters}`);
	}
	return lines.join("\n");
}
