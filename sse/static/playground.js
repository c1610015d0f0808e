// The page: builds a call from the form, streams the answer, and shows when what came.
import { fetchSSE } from "./sse.js";

const $ = (id) => document.getElementById(id);

const WORDS = {
  en: {
    tagline: "Event streams, relayed: safely, unchanged, at once.", request: "Request", preset: "Example",
    upstream: "Upstream", free: "any target URL", method: "Method", path: "Path below the upstream", target: "Target URL",
    fields: "Fields, one a line", body: "Body", passcode: "Passcode (kept in memory only)", send: "Send", stop: "Stop",
    copy: "Copy this call as", copied: "copied", answer: "Answer", first: "First byte", events: "Events", bytes: "Bytes",
    end: "End", plot: "When the events came", raw: "Events as they came", wire: "Bytes as they came", empty: "The answer grows here.",
    complete: "complete", aborted: "stopped", streaming: "streaming", waiting: "waiting", custom: "your own",
    prompt: "What are server-sent events?",
  },
  zh: {
    tagline: "转发事件流：安全、原样、即时。", request: "请求", preset: "示例",
    upstream: "上游", free: "任意目标地址", method: "方法", path: "上游之下的路径", target: "目标地址",
    fields: "请求头，每行一个", body: "请求体", passcode: "口令（只保存在内存中）", send: "发送", stop: "停止",
    copy: "复制为", copied: "已复制", answer: "回答", first: "首字节", events: "事件", bytes: "字节",
    end: "结束", plot: "事件到达的时间", raw: "事件", wire: "原始字节", empty: "回答会在这里逐字出现。",
    complete: "完成", aborted: "已停止", streaming: "传输中", waiting: "等待中", custom: "自定义",
    prompt: "什么是服务器发送事件？",
  },
};
const FREE = ""; // the value of the choice "any target URL"
let language = navigator.language.startsWith("zh") ? "zh" : "en";
let running = null; // the AbortController of the call under way
let edited = false;

const word = (name) => WORDS[language][name];

const PRESETS = [
  {
    name: "OpenAI: /v1/chat/completions", path: "v1/chat/completions", fields: "Content-Type: application/json",
    body: () => ({ model: "demo", stream: true, messages: [{ role: "user", content: word("prompt") }] }),
  },
  {
    name: "DashScope: text-generation", path: "api/v1/services/aigc/text-generation/generation",
    fields: "Content-Type: application/json\nX-DashScope-SSE: enable",
    body: () => ({
      model: "demo", input: { messages: [{ role: "user", content: word("prompt") }] },
      parameters: { result_format: "message", incremental_output: true },
    }),
  },
];

/** The text that an event of one of the known dialects adds. */
function textOf(data) {
  if (data === "[DONE]") return "";
  let document;
  try {
    document = JSON.parse(data);
  } catch {
    return data + "\n"; // plain text is shown as it is
  }
  if (document === null || typeof document !== "object") return data + "\n";
  const choice = document.choices?.[0] ?? document.output?.choices?.[0];
  return choice?.delta?.content ?? choice?.message?.content ?? document.output?.text ?? document.delta?.text
    ?? document.message?.content ?? document.response ?? "";
}

function speak() {
  document.documentElement.lang = language;
  for (const element of document.querySelectorAll("[data-text]")) element.textContent = word(element.dataset.text);
  $("language").textContent = language === "zh" ? "English" : "中文";
  $("language").lang = language === "zh" ? "en" : "zh";
  $("text").dataset.empty = word("empty");
  for (const option of $("upstream").options) if (option.value === FREE) option.textContent = word("free");
  for (const option of $("preset").options) if (option.value === "") option.textContent = word("custom");
  labelTarget();
  if (!edited) usePreset();
}

const labelTarget = () => ($("target-label").textContent = word($("upstream").value === FREE ? "target" : "path"));

function usePreset() {
  const preset = PRESETS[$("preset").value];
  if (!preset || $("upstream").value === FREE) return;
  $("target").value = preset.path;
  $("fields").value = preset.fields;
  $("body").value = JSON.stringify(preset.body(), null, 2);
  $("method").value = "POST";
  edited = false;
}

/** The call that the form describes: URL, and what fetch takes besides. */
function describe() {
  const fields = {};
  for (const line of $("fields").value.split("\n")) {
    const colon = line.indexOf(":");
    if (colon > 0) fields[line.slice(0, colon).trim()] = line.slice(colon + 1).trim();
  }
  const method = $("method").value;
  const body = method === "GET" ? undefined : $("body").value;
  const passcode = $("passcode").value;
  const base = document.baseURI;
  if ($("upstream").value === FREE) {
    const call = { targetUrl: $("target").value.trim(), method: method.toLowerCase(), body, header: fields };
    if (passcode) call.passcode = passcode;
    return {
      url: new URL("forward-sse", base).href, method: "POST",
      headers: { "Content-Type": "application/json" }, body: JSON.stringify(call),
    };
  }
  if (passcode) fields["X-Passcode"] = passcode;
  const path = $("target").value.trim().replace(/^\/+/, "");
  return { url: new URL(`upstream/${$("upstream").value}/${path}`, base).href, method, headers: fields, body };
}

const quote = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

const COPIES = {
  curl: ({ url, method, headers, body }) =>
    [`curl -N -X ${method} ${quote(url)}`, ...Object.entries(headers).map(([name, value]) => `-H ${quote(`${name}: ${value}`)}`),
      ...(body === undefined ? [] : [`--data-raw ${quote(body)}`])].join(" \\\n  "),
  fetch: ({ url, ...init }) => `await fetch(${JSON.stringify(url)}, ${JSON.stringify(init, null, 2)})`,
  python: ({ url, method, headers, body }) =>
    ["import requests", "", `with requests.request(${JSON.stringify(method)}, ${JSON.stringify(url)}, stream=True,`,
      `                      headers=${JSON.stringify(headers)},`,
      `                      data=${body === undefined ? "None" : `${JSON.stringify(body)}.encode()`}) as response:`,
      "    for line in response.iter_lines():", "        print(line.decode())"].join("\n"),
};

/** Shows one call: the numbers, the plot, the text and the events. */
class View {
  constructor() {
    this.start = performance.now();
    this.times = [];
    this.bytes = 0;
    for (const id of ["first", "events", "bytes"]) $(id).textContent = "–";
    this.decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    $("text").textContent = $("raw").textContent = $("wire").textContent = "";
    this.say("waiting");
    this.plot();
  }
  say(text, kind = "") {
    $("end").textContent = WORDS[language][text] ?? text;
    $("end").className = kind;
  }
  piece(piece) {
    if (!this.bytes) {
      $("first").textContent = `${Math.round(performance.now() - this.start)} ms`;
      this.say("streaming");
    }
    this.bytes += piece.length;
    // Line ends are shown, for they are what an event stream is made of.
    const text = this.decoder.decode(piece, { stream: true });
    this.add($("wire"), text.replaceAll("\r", "␍").replaceAll("\n", "␊\n"));
    $("bytes").textContent = this.bytes.toLocaleString(language);
  }
  event({ type, data }) {
    this.times.push(performance.now() - this.start);
    $("events").textContent = this.times.length.toLocaleString(language);
    this.add($("text"), type === "error" ? "" : textOf(data));
    this.add($("raw"), `${type === "message" ? "" : `${type}: `}${data}\n`);
    this.plot();
  }
  add(element, text) {
    if (!text) return;
    const follows = element.scrollTop + element.clientHeight >= element.scrollHeight - 24;
    element.append(text);
    if (follows) element.scrollTop = element.scrollHeight;
  }
  plot() {
    if (this.drawing) return;
    this.drawing = requestAnimationFrame(() => {
      this.drawing = 0;
      const all = Math.max(1, this.times.at(-1) ?? 1);
      const x = (time) => ((time / all) * 598 + 1).toFixed(1);
      const shape = (name, attributes) => {
        const element = document.createElementNS("http://www.w3.org/2000/svg", name);
        for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
        return element;
      };
      const wait = shape("rect", { x: 0, y: 50, height: 6, width: this.times.length ? x(this.times[0]) : 0 });
      const lines = this.times.slice(-2000).map((time) => shape("line", { x1: x(time), x2: x(time), y1: 8, y2: 56 }));
      $("plot").replaceChildren($("plot").querySelector("title"), wait, ...lines);
    });
  }
}

/** fetch, with every byte told to the view; an answer that is no event stream is shown as it is. */
const watched = (view) => async (request) => {
  const response = await fetch(request);
  const isStream = response.ok && response.headers.get("Content-Type")?.startsWith("text/event-stream");
  const count = new TransformStream({
    transform(piece, output) {
      view.piece(piece);
      output.enqueue(piece);
    },
  });
  const body = response.body?.pipeThrough(count) ?? null;
  const answer = new Response(response.status === 204 ? null : body, response);
  if (!isStream && body) show(view, response.ok, await answer.clone().text());
  return answer;
};

function show(view, isAnswer, text) {
  view.add($("raw"), text);
  if (isAnswer) view.add($("text"), textOf(text));
}

function send() {
  const { url, ...init } = describe();
  running?.abort();
  const view = new View();
  const end = (text, kind) => {
    view.say(text, kind);
    if (running !== controller) return;
    running = null;
    $("stop").disabled = true;
  };
  const { controller } = fetchSSE(url, { ...init, fetch: watched(view) }, {
    onEvent: (event) => view.event(event),
    onDone: () => end("complete", "good"),
    onError: ({ code, status }) =>
      code === "not_event_stream" ? end("complete", "good") : end(status >= 400 ? `${status} ${code}` : code, "bad"),
  });
  running = controller;
  controller.signal.addEventListener("abort", () => end("aborted"));
  $("stop").disabled = false;
}

async function start() {
  const facts = await (await fetch("playground.json")).json();
  $("upstream").append(...facts.upstreams.map((name) => new Option(name)), new Option(word("free"), FREE));
  $("preset").append(...PRESETS.map(({ name }, index) => new Option(name, index)), new Option(word("custom"), ""));
  $("preset").value = facts.demo ? "0" : "";
  $("passcode-label").hidden = facts.open;
  speak();
}

$("call").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
$("call").addEventListener("input", ({ target }) => {
  if (target.id === "preset") return usePreset();
  if (target.id === "upstream") return labelTarget();
  if (target.id === "passcode") return;
  edited = true;
  $("preset").value = "";
});
$("stop").addEventListener("click", () => running?.abort());
$("language").addEventListener("click", () => {
  language = language === "zh" ? "en" : "zh";
  speak();
});
for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(COPIES[button.dataset.copy](describe()));
    $("copied").textContent = word("copied");
  });
}
start();
