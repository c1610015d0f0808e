// Calls chat completions through the gateway by OpenAI's own client, and prints what it saw as JSON.
import OpenAI from "openai";

const [baseURL, apiKey, ending] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const messages = [{ role: "user", content: "Hello" }];

async function read() {
  if (ending === "whole") {
    const answer = await client.chat.completions.create({ model: "demo", messages });
    return { text: answer.choices[0].message.content };
  }
  let text = "";
  const stream = await client.chat.completions.create({ model: "demo", messages, stream: true });
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta?.content ?? "";
    if (ending === "abort") stream.controller.abort();
  }
  return { text };
}

try {
  console.log(JSON.stringify(await read()));
} catch (error) {
  console.log(JSON.stringify({
    error: error.constructor.name,
    status: error.status,
    upstream: error.headers.get("X-Upstream-Status"),
    type: error.headers.get("Content-Type"),
  }));
}
