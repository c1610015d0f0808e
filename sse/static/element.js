/** The page's elements: found, made, written, and lists that grow once a frame. */

import { currentLanguage, word } from "./language.js";

export const $ = (id) => document.getElementById(id);
export const all = (selector) => [...document.querySelectorAll(selector)];
export const number = (value) => value.toLocaleString(currentLanguage());

/** Makes an element; text in it stays text, whatever it is. */
export function make(name, properties = {}, ...children) {
	const element = Object.assign(document.createElement(name), properties);
	element.append(...children);
	return element;
}

/** Changes a text only where it differs, so that a screen reader is not disturbed, nor a selection. */
export function setText(element, text) {
	if (element.firstChild?.data !== text) element.textContent = text;
}

/** Presses one button of a group, by the value of its data attribute. */
export function press(attribute, value) {
	for (const button of all(`button[data-${attribute}]`)) {
		button.setAttribute("aria-pressed", String(button.dataset[attribute] === value));
	}
}

/** Copies a text, and shows that on the button for a moment. */
export async function copy(text, button) {
	try {
		await navigator.clipboard.writeText(text);
	} catch {
		// Only a secure context has a clipboard; elsewhere a selection can be copied.
		const area = document.body.appendChild(make("textarea", { value: text, className: "unseen" }));
		area.select();
		document.execCommand("copy");
		area.remove();
		button.focus();
	}
	button.textContent = $("copied").textContent = word("copied");
	setTimeout(() => {
		button.textContent = word("copy");
		$("copied").textContent = "";
	}, 1500);
}

/** Keeps the end of an element in view, unless its reader has scrolled up. Reads the layout only when it scrolls. */
export function follow(element) {
	let follows = true;
	element.addEventListener("scroll", () => {
		follows = element.scrollTop + element.clientHeight >= element.scrollHeight - 48;
	});
	return (isNew = false) => {
		if ((follows ||= isNew)) element.scrollTop = isNew ? 0 : element.scrollHeight;
	};
}

/** Rows of which so many enter with each frame, and the earliest leave. */
export class Rows {
	/**
	 * @param {HTMLElement} element
	 * @param {(item: any) => HTMLElement} render
	 * @param {number} most rows that are kept
	 */
	constructor(element, render, most) {
		Object.assign(this, { element, render, most, follow: follow(element) });
		this.clear();
	}

	clear() {
		this.waiting = [];
		this.gone = 0;
		this.element.replaceChildren();
		delete this.element.dataset.earlier;
		this.follow(true);
	}

	add(item) {
		this.waiting.push(item);
		// Taken off in bulk: to shift each one off would move all others each time.
		if (this.waiting.length > 2 * this.most) this.gone += this.waiting.splice(0, this.most).length;
	}

	/** Returns whether rows are waiting for the next frame. */
	flush(count = 30) {
		if (!this.waiting.length) return false;
		this.gone += this.waiting.splice(0, Math.max(0, this.waiting.length - this.most)).length;
		this.element.append(...this.waiting.splice(0, count).map(this.render));
		for (let over = this.element.childElementCount - this.most; over > 0; over--, this.gone++) {
			this.element.firstElementChild.remove();
		}
		if (this.gone) this.element.dataset.earlier = word("earlier")(number(this.gone));
		this.follow();
		return this.waiting.length > 0;
	}
}
