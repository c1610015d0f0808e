/** The page: sends the call that the form describes, and shows it while it runs. */

import { $, all, copy, press, setText } from "./element.js";
import { describe, isIncremental, labelOf, prepareForm, relabelForm } from "./form.js";
import { speak, word } from "./language.js";
import { watchPlot } from "./plot.js";
import { moveRow } from "./row.js";
import { fetchSSE, resumeSSE } from "./sse.js";
import { Call, clearCall, isCountingDown, noteCall, showCall, showMarkdown, showPlot } from "./view.js";

const KEPT = "sse-answer"; // where a reload finds the answer that has not ended
const KEEP = 300; // seconds

let facts = { demo: false };
/** @type {Call | null} */
let current = null;

function send() {
	const call = new Call(labelOf(), isIncremental());
	try {
		const { url, ...init } = describe($("passcode").value);
		const resume = $("keep").checked ? KEEP : undefined;
		show(call, fetchSSE(url, { ...init, resume, fetch: (...request) => call.fetch(...request) }, handle(call)));
	} catch (error) {
		setText($("problem"), error.message);
	}
}

/** Reads the answer that was open before a reload, from its beginning and on to its end. */
function goOn({ location, label, incremental }) {
	const call = new Call(label, incremental);
	const { headers } = describe($("passcode").value);
	show(call, resumeSSE(location, 0, handle(call), { headers, fetch: (...request) => call.fetch(...request) }));
}

const handle = (call) => ({
	onEvent: (event) => call.event(event),
	onReconnect: () => (call.state = "reconnecting"),
	onDone: () => call.end("complete"),
	onError: (error) => call.end("error", error),
});

function stop(call) {
	const { connection } = call;
	connection.stop().catch(({ message }) => setText($("problem"), message));
}

function show(call, connection) {
	call.connection = connection;
	connection.controller.signal.addEventListener("abort", () => call.end("aborted"));
	if (current && !current.isOver) stop(current);
	current = call;
	clearCall();
	setText($("problem"), "");
	run(call);
	// On a phone what comes is far below the form.
	if (matchMedia("(max-width: 43.74rem)").matches) $("end").closest("section").scrollIntoView();
}

/** Shows a call with every frame until all of it is shown: time passes on the page whether anything comes or not. */
function run(call, isNoted = false) {
	if (current !== call) return;
	const isWaiting = showCall(call);
	const { isOver, label, connection, incremental } = call;
	if (isOver) sessionStorage.removeItem(KEPT);
	else if (connection.location)
		sessionStorage.setItem(KEPT, JSON.stringify({ location: connection.location, label, incremental }));
	if (isOver && !isNoted) noteCall(call);
	if (!isOver || isWaiting) requestAnimationFrame(() => run(call, isOver));
	else if (isCountingDown(call)) setTimeout(() => run(call, true), 500);
}

function relabel() {
	speak();
	for (const id of ["list", "raw", "head"]) $(id).dataset.none = word("none");
	setText($("keys"), /Mac|iP(hone|ad)/.test(navigator.platform) ? "⌘ ↵" : "Ctrl ↵");
	relabelForm();
	if (current) return showCall(current);
	setText($("end"), word("idle"));
	document.title = `flask-sse-relay – ${word("tagline")}`;
	setText($("note"), facts.demo ? `${word("invite")}\n\n${word("demo")}` : word("invite"));
	showPlot(null);
}

function selectTab(tab) {
	for (const other of all("[role=tab]")) {
		const isSelected = other === tab;
		other.setAttribute("aria-selected", String(isSelected));
		other.tabIndex = isSelected ? 0 : -1;
		$(other.getAttribute("aria-controls")).hidden = !isSelected;
	}
}

/** https://www.w3.org/WAI/ARIA/apg/patterns/tabs/ */
function moveTab(event) {
	const tabs = all("[role=tab]");
	const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
	const next =
		{ Home: tabs[0], End: tabs.at(-1) }[event.key] ??
		(step && tabs.at((tabs.indexOf(event.target) + step) % tabs.length));
	if (!next) return;
	event.preventDefault();
	selectTab(next);
	next.focus();
}

async function start() {
	speak();
	facts = await (await fetch("playground.json")).json();
	$("docs").hidden = !facts.docs;
	$("source").hidden = !facts.source;
	$("source").href = facts.source || "#";
	prepareForm(facts);
	$("keep-field").hidden = !facts.resume;
	relabel();
	watchPlot($("plot"), () => showPlot(current));
	document.body.dataset.ready = "true";
	const kept = JSON.parse(sessionStorage.getItem(KEPT) ?? "null");
	if (!kept) return;
	$("continue").hidden = false;
	$("continue").addEventListener("click", () => goOn(kept));
	if (facts.open) goOn(kept);
}

$("call").addEventListener("submit", (event) => {
	event.preventDefault();
	send();
});
$("again").addEventListener("click", send);
$("stop").addEventListener("click", () => stop(current));
$("drop").addEventListener("click", () => current.drop());
$("copy-answer").addEventListener("click", () => copy(current.answer.text, $("copy-answer")));
document.addEventListener("keydown", (event) => {
	if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
	event.preventDefault();
	$("call").requestSubmit();
});
$("list").addEventListener("keydown", moveRow);
document.querySelector("[role=tablist]").addEventListener("keydown", moveTab);
for (const tab of all("[role=tab]")) tab.addEventListener("click", () => selectTab(tab));

/** Calls back with the value of a button that was pressed in a group of them. */
function choose(attribute, chosen) {
	for (const button of all(`button[data-${attribute}]`)) {
		button.addEventListener("click", () => {
			press(attribute, button.dataset[attribute]);
			chosen(button.dataset[attribute]);
		});
	}
}
choose("language", (language) => {
	history.replaceState(null, "", `#${language}`);
	speak(language);
	relabel();
});
choose("form", (form) => {
	$("raw").dataset.form = form;
	if (form === "hex") for (const row of $("raw").children) row.dump();
});
choose("answer", (answer) => {
	document.body.dataset.answer = answer;
	if (current) showMarkdown(current);
});
start();
