/** A call, written down as curl, fetch, sse.js and Python. Pure. */

const sh = (text) => `'${text.replaceAll("'", `'\\''`)}'`;
const js = (text) => JSON.stringify(text);
const indent = (text, by) => text.replaceAll("\n", `\n${by}`);

/** JSON's strings are Python's too; a text of several lines stays legible where no escape is needed. */
const py = (text) => (text.includes("\n") && !/\\|'''|'$/.test(text) ? `'''${text}'''` : js(text));

/** A body as the object that it is, where writing it so changes nothing but the spaces. */
function jsBody(body) {
	try {
		const value = JSON.parse(body);
		const pretty = JSON.stringify(value, null, 2);
		// A number that JavaScript cannot hold would become another one.
		if (body === pretty || body === JSON.stringify(value)) return `JSON.stringify(${indent(pretty, "  ")})`;
	} catch {}
	return js(body);
}

function jsInit({ method, headers, body }) {
	const lines = [`  method: ${js(method)},`];
	const fields = Object.entries(headers).map(([name, value]) => `    ${js(name)}: ${js(value)},\n`);
	if (fields.length) lines.push(`  headers: {\n${fields.join("")}  },`);
	if (body !== undefined) lines.push(`  body: ${jsBody(body)},`);
	return `{\n${lines.join("\n")}\n}`;
}

/**
 * @typedef {{ url: string, method: string, headers: Record<string, string>, body?: string }} Call
 * @type {Record<string, (call: Call, base: string) => string>} base is the page's own URL
 */
export const SNIPPETS = {
	curl: ({ url, method, headers, body }) =>
		[
			`curl -N${method === "GET" ? "" : ` -X ${method}`} ${sh(url)}`,
			...Object.entries(headers).map(([name, value]) => `-H ${sh(`${name}: ${value}`)}`),
			...(body === undefined ? [] : [`--data-raw ${sh(body)}`]),
		].join(" \\\n  "),

	fetch: (call) => `const response = await fetch(${js(call.url)}, ${jsInit(call)});
if (!response.ok) throw new Error(\`\${response.status}: \${await response.text()}\`);
const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
for (;;) {
  const { done, value } = await reader.read();
  if (done) break;
  console.log(value);
}
`,

	"sse.js": (call, base) => `import { fetchSSE } from ${js(new URL("sse-static/sse.js", base).href)};

const { controller } = fetchSSE(${js(call.url)}, ${jsInit(call)}, {
  onEvent: ({ type, data }) => console.log(type, data),
  onDone: () => console.log("complete"),
  onError: ({ code, status }) => console.error(code, status),
});
`,

	Python: ({ url, method, headers, body }) => {
		const fields = Object.entries(headers).map(([name, value]) => `    ${py(name)}: ${py(value)},\n`);
		const content = body === undefined ? "" : `body = ${py(body)}\n`;
		const sent = body === undefined ? "" : ", content=body.encode()";
		return `import httpx

headers = {${fields.length ? `\n${fields.join("")}` : ""}}
${content}url = ${py(url)}

with httpx.stream(${py(method)}, url, headers=headers${sent}, timeout=120) as response:
    response.raise_for_status()
    for line in response.iter_lines():
        print(line)
`;
	},
};
