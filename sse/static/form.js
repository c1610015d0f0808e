/** The form: what it is filled with, and the call that it describes. */

import { guess, PRESETS } from "./dialect.js";
import { $, all, make, press } from "./element.js";
import { word } from "./language.js";
import { SNIPPETS } from "./snippet.js";

const FREE = "?"; // among the upstreams: any target URL, by POST /forward-sse
const OWN = "/"; // among the upstreams: the gateway's own paths
const SECRET = "YOUR_PASSCODE"; // in copied calls, for what is typed here stays here

/** What the gateway tells of itself; see page.py. */
let facts = { upstreams: [], demo: false, open: true };
let preset = "openai"; // "" once the form is the visitor's own

const place = () => $("upstream").value;

function fill() {
	const known = guess(place());
	const call = preset === "ticks" ? { path: "sse", fields: {} } : PRESETS[preset]?.call(known, word("question"));
	if (call) {
		if (place() !== FREE) $("target").value = call.path;
		$("method").value = call.body ? "POST" : "GET";
		const fields = Object.entries(call.fields).map(([name, value]) => `${name}: ${value}`);
		$("fields").value = fields.join("\n");
		$("body").value = call.body ? JSON.stringify(call.body, null, 2) : "";
	}
	arrange();
}

/** Shows of the form what matters for the call. */
function arrange() {
	const isFree = place() === FREE;
	$("target-label").textContent = word(isFree ? "target" : "path");
	$("target").placeholder = isFree ? "https://api.example.com/v1/chat/completions" : "";
	$("prefix").textContent = isFree ? "" : place() === OWN ? "/" : `/upstream/${place()}/`;
	$("body-field").hidden = $("method").value === "GET";
	for (const input of all("#presets input")) input.checked = input.value === preset;
	writeSnippet();
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

/** Whether DashScope is asked for what is new in each event; undefined if the call does not say. */
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

async function copySnippet() {
	try {
		await navigator.clipboard.writeText($("snippet").textContent);
	} catch {
		// Only a secure context has a clipboard; what is selected can be copied by hand, and mostly by this.
		getSelection().selectAllChildren($("snippet"));
		document.execCommand("copy");
	}
	$("copy").textContent = $("copied").textContent = word("copied");
	setTimeout(() => {
		$("copy").textContent = word("copy");
		$("copied").textContent = "";
	}, 1500);
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

/** Takes what the gateway told, and fills the form for the first time. */
export function prepareForm(told) {
	facts = told;
	offerUpstreams();
	for (const name of facts.demo ? ["openai", "dashscope", "ticks"] : Object.keys(PRESETS)) {
		const input = make("input", { type: "radio", name: "preset", value: name });
		const title = make("span", {}, PRESETS[name]?.title ?? "");
		title.dataset.preset = name;
		$("presets").append(make("label", {}, input, title));
	}
	$("passcode-field").hidden = facts.open;
	preset = guess(place()).preset;
	$("call").addEventListener("input", ({ target }) => change(target));
	$("copy").addEventListener("click", copySnippet);
	$("passcode").addEventListener("change", askAgain);
	for (const button of all("button[data-snippet]")) {
		button.addEventListener("click", () => {
			chosenSnippet = button.dataset.snippet;
			writeSnippet();
		});
	}
}

function change({ name, value, id }) {
	if (name === "preset") {
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
		if (id !== "passcode") preset = "";
		arrange();
	}
}

/** Puts what the form says by itself into the language chosen. */
export function relabelForm() {
	for (const option of $("upstream").options) {
		if (option.value === FREE) option.textContent = word("free");
		if (option.value === OWN) option.textContent = word("own");
	}
	for (const label of all("#presets [data-preset=ticks]")) label.textContent = word("ticks");
	fill();
}
