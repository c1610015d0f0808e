// Prints as JSON what three SDKs report for each call: `node refusals.mjs '[["name", "baseURL", "passcode"], ...]'`.
import Anthropic from "@anthropic-ai/sdk";
import OpenAI from "openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { streamText } from "ai";

const messages = [{ role: "user", content: "Hello" }];

const sdks = {
  async openai(baseURL, apiKey) {
    const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
    for await (const _ of await client.chat.completions.create({ model: "m", messages, stream: true }));
  },
  async anthropic(baseURL, authToken) {
    const client = new Anthropic({ baseURL, authToken, apiKey: null, maxRetries: 0 });
    for await (const _ of await client.messages.create({ model: "m", messages, max_tokens: 9, stream: true }));
  },
  async ai(baseURL, apiKey) {
    const provider = createOpenAICompatible({ name: "gateway", baseURL, apiKey });
    let failure;
    const result = streamText({
      model: provider("m"), messages, maxRetries: 0, onError: ({ error }) => { failure = error; },
    });
    await result.consumeStream();
    if (failure) throw failure;
  },
};

const seen = {};
for (const [name, baseURL, passcode] of JSON.parse(process.argv[2])) {
  for (const [sdk, call] of Object.entries(sdks)) {
    try {
      await call(baseURL, passcode);
      seen[`${name} ${sdk}`] = "no error";
    } catch (error) {
      seen[`${name} ${sdk}`] = `${error.message ?? error} ${JSON.stringify(error)}`;
    }
  }
}
console.log(JSON.stringify(seen));
