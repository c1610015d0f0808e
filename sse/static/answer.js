/** The answer: text that grows once a frame, and the same as Markdown, rendered on demand. */

import { make } from "./element.js";

const STEP = 8000; // characters that enter with one frame
const BLOCK = 2000; // characters after which a line end begins a new block, so that little is laid out again
const LONGEST = 20_000; // of a block without a line end

/** A text in blocks of lines, of which only the last one changes. */
export class Growing {
	constructor(element) {
		this.element = element;
		this.clear();
	}

	clear() {
		this.element.replaceChildren();
		this.shown = "";
		this.node = null;
	}

	/** Returns whether more of the text is waiting for the next frame. */
	show(text) {
		if (text === this.shown) return false;
		if (!text.startsWith(this.shown)) this.clear();
		const from = this.shown.length;
		this.append(text.slice(from, from + STEP));
		this.shown = text.slice(0, from + STEP);
		return this.shown.length < text.length;
	}

	append(text) {
		while (text) {
			const size = this.node?.length ?? Infinity;
			if (size >= LONGEST || (size >= BLOCK && this.node.data.endsWith("\n"))) {
				this.node = new Text();
				this.element.append(make("div", {}, this.node));
			}
			const end = text.indexOf("\n", Math.max(0, BLOCK - this.node.length)) + 1 || text.length;
			const cut = Math.min(end, LONGEST - this.node.length);
			this.node.appendData(text.slice(0, cut));
			text = text.slice(cut);
		}
	}
}

/** Returns the elements of a Markdown text. It is built node by node: HTML in the text stays text. */
export async function renderMarkdown(text) {
	const { lexer } = await import("./marked.js");
	return build(lexer(text));
}

const build = (tokens) => tokens.flatMap((token) => (RENDER[token.type] ?? RENDER.text)(token));
const inside = (name, token) => make(name, { dir: "auto" }, ...build(token.tokens ?? []));
/** A text with its character references resolved, one by one: nothing else in it is taken for HTML. */
const plain = (text) =>
	text.replace(/&#?\w+;/g, (found) => new DOMParser().parseFromString(found, "text/html").body.textContent);

const RENDER = {
	space: () => [],
	hr: () => make("hr"),
	br: () => make("br"),
	def: () => [],
	// The answer's own headings stand below those of the page.
	heading: (token) => inside(`h${Math.min(6, token.depth + 2)}`, token),
	paragraph: (token) => inside("p", token),
	blockquote: (token) => inside("blockquote", token),
	strong: (token) => inside("strong", token),
	em: (token) => inside("em", token),
	del: (token) => inside("del", token),
	codespan: ({ text }) => make("code", {}, text),
	code: ({ text }) => make("pre", { tabIndex: 0 }, make("code", {}, text)),
	list: ({ ordered, start, items }) =>
		make(ordered ? "ol" : "ul", ordered ? { start } : {}, ...items.map((item) => inside("li", item))),
	checkbox: ({ checked }) => make("span", {}, checked ? "☑ " : "☐ "),
	table: ({ header, rows }) =>
		make(
			"table",
			{},
			make("thead", {}, make("tr", {}, ...header.map((cell) => inside("th", cell)))),
			make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map((cell) => inside("td", cell))))),
		),
	link: (token) => {
		const isSafe = /^(https?|mailto):/i.test(token.href);
		const link = inside(isSafe ? "a" : "span", token);
		return isSafe ? Object.assign(link, { href: token.href, target: "_blank", rel: "noopener noreferrer" }) : link;
	},
	// Nothing is loaded from elsewhere.
	image: ({ text, href }) => make("span", {}, `[${text || href}]`),
	escape: ({ text }) => text,
	html: ({ raw }) => raw,
	text: (token) => (token.tokens ? build(token.tokens) : plain(token.raw)),
};
