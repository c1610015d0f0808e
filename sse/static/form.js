/** The form: what it is filled with, what is kept of it, and the call that it describes. */

import { getString, guess, isJSON, PRESETS, setString } from "./dialect.js";
import { $, all, copy, make, press, setText } from "./element.js";
import { word } from "./language.js";
import { SNIPPETS } from "./snippet.js";

const FREE = "?"; // among the upstreams: any target URL, by POST /forward-sse
const OWN = "/"; // among the upstreams: the gateway's own paths
const SECRET = "YOUR_PASSCODE"; // in copied calls, for the passcode typed here stays here
const KEPT = ["upstream", "method", "target", "fields", "body"];
const STORE = "sse-form";
/** Headers that are not kept in the browser's storage, whatever is in them. */
const SECRETS = /^\s*(authorization|cookie|[\w-]*(key|token|secret|passcode|password)[\w-]*)\s*:/i;

/** The state of the gateway; see page.py. */
let facts = { upstreams: [], demo: false, open: true };
let preset = "openai"; // "" once the form is the visitor's own
let isFilling = false;
let before = null; // the form before an example took its place

const place = () => $("upstream").value;
const read = () => Object.fromEntries([["preset", preset], ...KEPT.map((id) => [id, $(id).value])]);

/** Writes a text as if it were typed, so that the browser's own undo brings back what was there. */
function type(area, text) {
	const { activeElement: focused } = document;
	area.focus();
	area.select();
	if (!document.execCommand("insertText", false, text)) area.value = text;
	focused?.focus();
}

function fill() {
	const known = guess(place());
	const call = preset === "ticks" ? { path: "sse", fields: {} } : PRESETS[preset]?.call(known, word("question"));
	if (call) {
		isFilling = true;
		if (place() !== FREE) $("target").value = call.path;
		$("method").value = call.body ? "POST" : "GET";
		$("fields").value = Object.entries(call.fields)
			.map(([name, value]) => `${name}: ${value}`)
			.join("\n");
		const body = call.body ? JSON.stringify(call.body, null, 2) : "";
		if (before && body) type($("body"), body);
		else $("body").value = body;
		isFilling = false;
	}
	arrange();
}

function restore(form) {
	preset = form.preset;
	for (const id of KEPT) {
		// An upstream that is no longer there leaves the first one.
		if (id !== "upstream" || [...$("upstream").options].some(({ value }) => value === form.upstream))
			$(id).value = form[id];
	}
	arrange();
}

/** Keeps the form for a reload of this tab; the passcode, and headers that may hold a secret, are left out. */
function keep() {
	const form = read();
	form.fields = form.fields
		.split("\n")
		.filter((line) => !SECRETS.test(line))
		.join("\n");
	sessionStorage.setItem(STORE, JSON.stringify(form));
}

/** Shows of the form what matters for the call. */
function arrange() {
	const isFree = place() === FREE;
	$("target-label").textContent = word(isFree ? "target" : "path");
	$("target").placeholder = isFree ? "https://api.example.com/v1/chat/completions" : "";
	$("prefix").textContent = isFree ? "" : place() === OWN ? "/" : `/upstream/${place()}/`;
	$("body-field").hidden = $("question-pair").hidden = $("method").value === "GET";
	for (const input of all("#presets input")) input.checked = input.value === preset;
	$("undo").hidden = !before;
	for (const name of ["model", "question"]) {
		const value = getString($("body").value, name);
		$(name).disabled = value === undefined;
		if (document.activeElement !== $(name)) $(name).value = value ?? "";
	}
	markBody();
	writeSnippet();
}

/** JSON that is broken is marked while it is typed; it can be sent all the same. */
function markBody() {
	const body = $("body").value;
	const isMeantAsJSON = /^\s*[{[]/.test(body) || /^content-type:.*json/im.test($("fields").value);
	const isBroken = body.trim() !== "" && isMeantAsJSON && !isJSON(body);
	$("body").setAttribute("aria-invalid", String(isBroken));
	setText($("body-problem"), isBroken ? `${word("badJSON")} ${complaint(body)}` : "");
}

function complaint(text) {
	try {
		return JSON.parse(text) && "";
	} catch (error) {
		return error.message;
	}
}

function parseFields() {
	const fields = {};
	const lines = $("fields").value.split("\n");
	for (const line of lines.filter((line) => line.trim())) {
		// RFC 9110 section 5.6.2: a name is a token
		const [, name, value] = line.match(/^\s*([!#$%&'*+.^_`|~\w-]+)\s*:(.*)$/) ?? [];
		if (!name) throw new TypeError(word("badField")(line.trim()));
		fields[name] = value.trim();
	}
	return fields;
}

/** fetch takes a field's value as a string of bytes; the gateway reads a passcode as UTF-8. */
const asBytes = (text) => String.fromCharCode(...new TextEncoder().encode(text));

/** The call that the form describes, as fetch takes it. */
export function describe(passcode) {
	const fields = parseFields();
	const target = $("target").value.trim();
	const method = $("method").value;
	const body = method === "GET" ? undefined : $("body").value;
	if (place() === FREE) {
		if (!target) throw new TypeError(word("noTarget"));
		const call = { targetUrl: target, method: method.toLowerCase(), body, header: fields };
		return {
			url: new URL("forward-sse", document.baseURI).href,
			method: "POST",
			headers: { "Content-Type": "application/json" },
			body: JSON.stringify(passcode ? { ...call, passcode } : call),
		};
	}
	const base = place() === OWN ? "" : `upstream/${encodeURIComponent(place())}/`;
	const url = new URL(base + target.replace(/^\/+/, ""), document.baseURI).href;
	return { url, method, headers: passcode ? { ...fields, "X-Passcode": asBytes(passcode) } : fields, body };
}

/** The entry of the table of calls. */
export const labelOf = () =>
	[place() === FREE || place() === OWN ? $("target").value : place(), getString($("body").value, "model")]
		.filter(Boolean)
		.join(" · ");

/** Whether DashScope is requested to send only what is new in each event; undefined if the call sets nothing. */
export function isIncremental() {
	try {
		return JSON.parse($("body").value).parameters.incremental_output;
	} catch {
		return undefined;
	}
}

let chosenSnippet = "curl";

function writeSnippet() {
	press("snippet", chosenSnippet);
	try {
		const call = describe(facts.open ? "" : SECRET);
		$("snippet").textContent = SNIPPETS[chosenSnippet](call, document.baseURI);
	} catch (error) {
		$("snippet").textContent = error.message;
	}
}

function offerUpstreams() {
	$("upstream").replaceChildren(
		...facts.upstreams.map((name) => new Option(name, name)),
		...(facts.demo ? [new Option("", OWN)] : []),
		new Option("", FREE),
	);
}

/** The gateway names its upstreams only to those who may call them. */
async function askAgain() {
	const passcode = $("passcode").value;
	const headers = passcode ? { "X-Passcode": asBytes(passcode) } : {};
	const { upstreams } = await (await fetch("playground.json", { headers })).json();
	if (!upstreams.length || facts.upstreams.length) return;
	facts.upstreams = upstreams;
	offerUpstreams();
	if (preset) preset = guess(place()).preset;
	relabelForm();
}

/** Takes the state of the gateway, and fills the form for the first time, or as it was before a reload. */
export function prepareForm(state) {
	facts = state;
	offerUpstreams();
	for (const name of facts.demo ? ["openai", "dashscope", "ticks"] : Object.keys(PRESETS)) {
		const input = make("input", { type: "radio", name: "preset", value: name });
		const title = make("span", {}, PRESETS[name]?.title ?? "");
		title.dataset.preset = name;
		$("undo").before(make("label", {}, input, title));
	}
	$("passcode-field").hidden = facts.open;
	preset = guess(place()).preset;
	const example = new URLSearchParams(location.search).get("example");
	if ([...all("#presets input")].some(({ value }) => value === example)) preset = example;
	if (preset === "ticks") $("upstream").value = OWN;
	const kept = !example && JSON.parse(sessionStorage.getItem(STORE) ?? "null");
	if (kept) restore(kept);
	$("call").addEventListener("input", ({ target }) => isFilling || change(target));
	$("passcode").addEventListener("change", askAgain);
	$("copy").addEventListener("click", () => copy($("snippet").textContent, $("copy")));
	$("undo").addEventListener("click", () => {
		restore(before);
		before = null;
		arrange();
		keep();
		$("body").focus();
	});
	for (const button of all("button[data-snippet]")) {
		button.addEventListener("click", () => {
			chosenSnippet = button.dataset.snippet;
			writeSnippet();
		});
	}
}

/** The form as it stood when `change` was called last: the inputs have changed by then. */
let last = null;

function change({ name, value, id }) {
	if (name === "preset") {
		before = last?.preset === "" ? last : null;
		preset = value;
		if (preset === "ticks") $("upstream").value = OWN;
		else if (place() === OWN) $("upstream").selectedIndex = 0;
		fill();
	} else if (id === "upstream") {
		if (place() === OWN) preset = "ticks";
		else if (place() === FREE) $("target").value = "";
		else if (preset) preset = guess(place()).preset;
		fill();
	} else {
		if (id === "question" || id === "model") $("body").value = setString($("body").value, id, value);
		if (id !== "passcode" && id !== "keep") preset = "";
		before = null;
		arrange();
	}
	last = read();
	keep();
}

/** Puts the texts of the form into the language chosen. */
export function relabelForm() {
	for (const option of $("upstream").options) {
		if (option.value === FREE) option.textContent = word("free");
		if (option.value === OWN) option.textContent = word("own");
	}
	for (const label of all("#presets [data-preset=ticks]")) label.textContent = word("ticks");
	fill();
	last = read();
}
