/** The page's elements: found, made, written. */

import { currentLanguage } from "./language.js";

export const $ = (id) => document.getElementById(id);
export const all = (selector) => [...document.querySelectorAll(selector)];
export const number = (value) => value.toLocaleString(currentLanguage());

/** Makes an element; text in it stays text, whatever it says. */
export function make(name, properties = {}, ...children) {
	const element = Object.assign(document.createElement(name), properties);
	element.append(...children);
	return element;
}

/** Changes a text only where it differs, so that what reads the page aloud is not disturbed, nor a selection. */
export function setText(element, text) {
	const node = element.firstChild;
	if (!node) return text && element.append(text);
	if (node.data === text) return;
	if (text.startsWith(node.data)) node.appendData(text.slice(node.data.length));
	else node.data = text;
}

/** Presses one button of a group, by the value of its data attribute. */
export function press(attribute, value) {
	for (const button of all(`button[data-${attribute}]`)) {
		button.setAttribute("aria-pressed", String(button.dataset[attribute] === value));
	}
}
