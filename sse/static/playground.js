/** The page: sends the call that the form describes, and shows it while it runs. */

import { $, all, press, setText } from "./element.js";
import { describe, isIncremental, prepareForm, relabelForm } from "./form.js";
import { speak, word } from "./language.js";
import { fetchSSE } from "./sse.js";
import { Call, showCall, showPlot } from "./view.js";

let facts = { demo: false };
/** @type {Call | null} */
let current = null;

function send() {
	const call = new Call(isIncremental());
	try {
		const { url, ...init } = describe($("passcode").value);
		const watched = { ...init, fetch: (url, init) => call.fetch(url, init) };
		const { controller } = fetchSSE(url, watched, {
			onEvent: (event) => call.event(event),
			onDone: () => call.end("complete"),
			onError: (error) => call.end("error", error),
		});
		call.controller = controller;
	} catch (error) {
		$("problem").textContent = error.message;
		return;
	}
	call.controller.signal.addEventListener("abort", () => call.end("aborted"));
	current?.controller.abort();
	current = call;
	clear();
	run(call);
	// On a phone what comes is far below the form.
	if (matchMedia("(max-width: 50rem)").matches) $("end").closest("section").scrollIntoView();
}

function clear() {
	$("problem").textContent = "";
	for (const id of ["list", "raw", "head"]) {
		$(id).replaceChildren();
		delete $(id).dataset.gone;
		delete $(id).dataset.earlier;
	}
}

/** Shows a call with every frame until it is over: time passes on the page whether anything comes or not. */
function run(call) {
	if (current !== call) return;
	showCall(call);
	if (!call.isOver) requestAnimationFrame(() => run(call));
}

function relabel() {
	speak();
	for (const id of ["list", "raw", "head"]) $(id).dataset.none = word("none");
	relabelForm();
	if (current) return showCall(current);
	setText($("end"), word("idle"));
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
	prepareForm(facts);
	relabel();
	new ResizeObserver(() => showPlot(current)).observe($("plot"));
	document.body.dataset.ready = "true";
}

$("call").addEventListener("submit", (event) => {
	event.preventDefault();
	send();
});
$("stop").addEventListener("click", () => current?.controller.abort());
document.addEventListener("keydown", (event) => {
	if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
	event.preventDefault();
	$("call").requestSubmit();
});
document.querySelector("[role=tablist]").addEventListener("keydown", moveTab);
for (const tab of all("[role=tab]")) tab.addEventListener("click", () => selectTab(tab));
for (const button of all("button[data-language]")) {
	button.addEventListener("click", () => {
		history.replaceState(null, "", `#${button.dataset.language}`);
		speak(button.dataset.language);
		relabel();
	});
}
for (const button of all("button[data-form]")) {
	button.addEventListener("click", () => {
		$("raw").dataset.form = button.dataset.form;
		press("form", button.dataset.form);
	});
}
start();
