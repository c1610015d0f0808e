/** Draws when the events of a stream came: a line for each, as high as the wait before it. */

const SVG = "http://www.w3.org/2000/svg";
const TOP = 22;
const FLOOR = 22; // pixels below the axis, for its labels
const LEAST = 7; // pixels that an event without any wait before it still has

/** Milliseconds as people read them. */
export const duration = (time) =>
	time < 999.5 ? `${Math.round(time)} ms` : `${(time / 1000).toFixed(time < 9995 ? 2 : time < 99950 ? 1 : 0)} s`;

/** A round step of which about `count` fit into `span`. */
function roundStep(span, count) {
	const power = 10 ** Math.floor(Math.log10(span / count));
	return [1, 2, 5, 10].find((factor) => factor * power * count >= span) * power;
}

function element(name, attributes, text) {
	const made = document.createElementNS(SVG, name);
	for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
	if (text !== undefined) made.textContent = text;
	return made;
}

/** At most one line for each pixel, the highest: an hour of events is drawn as fast as a second. */
function highest(times, x) {
	const found = new Map();
	for (const { time, wait } of times) {
		const at = Math.round(x(time));
		found.set(at, Math.max(found.get(at) ?? 0, wait));
	}
	return found;
}

/** The plot's size, without a look at the layout in each frame. */
let size = { width: 0, height: 0 };

/** Calls back when the size has changed. */
export function watchPlot(svg, redraw) {
	new ResizeObserver(([{ contentRect }]) => {
		size = contentRect;
		redraw();
	}).observe(svg);
}

/**
 * @param {SVGElement} svg
 * @param {{ first?: number, times: { time: number, wait: number }[], count: number, now: number, isOver: boolean,
 *   cut: "" | "error" | "aborted", gap?: { from: number, to: number } }} stream ms since the call was sent
 * @param {{ axis: string }} words
 */
export function drawPlot(svg, { first, times, count, now, isOver, cut, gap }, words) {
	const { width, height } = size;
	if (!width) return;
	const floor = height - FLOOR;
	const span = Math.max(now, 500);
	const x = (time) => 1 + (time / span) * (width - 2);
	const drawn = [];

	const step = roundStep(span, Math.max(2, Math.floor(width / 95)));
	for (let time = 0; time <= span; time += step) {
		const at = x(time);
		drawn.push(element("path", { class: "grid", d: `M${at} ${TOP}V${floor}` }));
		const anchor = time === 0 ? "start" : at > width - 24 ? "end" : "middle";
		const label = time === 0 ? "0" : time < 1000 ? `${time} ms` : `${time / 1000} s`;
		drawn.push(element("text", { x: at, y: height - 6, "text-anchor": anchor }, label));
	}
	drawn.push(element("path", { class: "axis", d: `M0 ${floor}H${width}` }));

	if (now > 0) {
		const end = first ?? now;
		drawn.push(element("rect", { class: "wait", x: 0, y: TOP, width: Math.max(x(end), 1), height: floor - TOP }));
		if (first !== undefined) {
			drawn.push(element("path", { class: "first", d: `M${x(first)} ${TOP}V${floor}` }));
			drawn.push(element("text", { class: "first", x: 0, y: 14 }, duration(first)));
		}
	}
	const isLong = gap && gap.to - gap.from > 0;
	if (isLong) {
		const [from, to] = [x(gap.from), x(gap.to)];
		drawn.push(element("rect", { class: "gap", x: from, y: TOP, width: Math.max(to - from, 1), height: floor - TOP }));
		const middle = Math.min(Math.max((from + to) / 2, 80), width - 24);
		drawn.push(
			element("text", { class: "gap", x: middle, y: 14, "text-anchor": "middle" }, duration(gap.to - gap.from)),
		);
	}
	const longest = isLong ? gap.to - gap.from : 1;
	let lines = "";
	for (const [at, wait] of highest(times, x)) {
		lines += `M${at} ${floor}V${(floor - LEAST - (wait / longest) * (floor - TOP - LEAST)).toFixed(1)}`;
	}
	if (lines) drawn.push(element("path", { class: "event", d: lines }));
	if (!isOver && now > 0) drawn.push(element("path", { class: "now", d: `M${x(now)} ${TOP}V${floor}` }));
	if (cut) drawn.push(element("path", { class: cut, d: `M${x(now)} ${TOP}V${floor}` }));
	if (!times.length && now === 0) {
		drawn.push(
			element("text", { class: "hint", x: width / 2, y: (TOP + floor) / 2 + 4, "text-anchor": "middle" }, words.axis),
		);
	}
	svg.replaceChildren(...drawn);
	svg.dataset.events = count;
}
