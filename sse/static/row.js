/** The rows of the inspector: events, and bytes as they came. */

import { $, make, number } from "./element.js";
import { duration } from "./plot.js";

export const SHOWN_BYTES = 4096; // of one piece

/** An event: its token, or else its data; opened, the whole. Arrow keys walk through the rows, see moveRow. */
export function eventRow({ index, time, event: { type, data, lastEventId }, added, isThought }) {
	const facts = [make("span", { className: "index" }, String(index)), make("time", {}, `+${duration(time)}`)];
	if (type !== "message") facts.push(make("b", { className: type === "error" ? "bad" : "" }, type));
	if (lastEventId) facts.push(make("span", {}, `id ${lastEventId}`));
	const hasToken = added !== "" && added.trim() !== data.trim();
	if (hasToken)
		facts.push(make("q", { className: isThought ? "thought" : "", dir: "auto" }, JSON.stringify(added).slice(1, -1)));
	const summary = make("summary", { tabIndex: -1 }, make("span", { className: "facts" }, ...facts));
	if (!hasToken) summary.append(make("code", {}, data.slice(0, 300)));
	const details = make("details", {}, summary);
	details.addEventListener("toggle", () => details.append(make("pre", {}, pretty(data))), { once: true });
	return make("li", {}, details);
}

/** Moves the focus among the rows: the list is one stop of the Tab key, however many rows it has. */
export function moveRow(event) {
	const rows = [...$("list").querySelectorAll("summary")];
	const at = rows.indexOf(document.activeElement);
	const next = { ArrowDown: at + 1, ArrowUp: at < 0 ? rows.length - 1 : at - 1, Home: 0, End: rows.length - 1 }[
		event.key
	];
	if (!rows[next]) return;
	event.preventDefault();
	rows[next].focus();
}

export function pretty(text) {
	try {
		return JSON.stringify(JSON.parse(text), null, 2);
	} catch {
		return text;
	}
}

/** Bytes as they came, as text with its line ends marked, and as hexadecimal. */
export function pieceRow({ time, size, bytes, text }) {
	const cut = size > SHOWN_BYTES ? " …" : "";
	const ends = { "\r\n": "←↵\n", "\r": "←\n", "\n": "↵\n", "\uFEFF": "⟨BOM⟩" };
	const visible = text.replace(/\r\n|\r|\n|\uFEFF/g, (end) => ends[end]);
	const caption = make("span", { className: "facts" }, `+${duration(time)} · ${number(size)} B`);
	const row = make("div", {}, caption, make("pre", { className: "as-text" }, visible + cut));
	row.dump = () => row.querySelector(".as-hex") ?? row.append(make("pre", { className: "as-hex" }, dump(bytes) + cut));
	if ($("raw").dataset.form === "hex") row.dump();
	return row;
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
