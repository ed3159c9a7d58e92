// What a JavaScript program sees of the gateway through the stock client; told as JSON.
import OpenAI from "openai";

const [baseURL, key, spent, rated] = process.argv.slice(2);
const messages = [{ role: "user", content: "hello there" }];
const open = (apiKey, user, options = {}) =>
  new OpenAI({ baseURL, apiKey, defaultHeaders: { "X-End-User-Id": user, "X-Session-Id": "js" }, ...options });

async function failure(call) {
  try {
    await call();
  } catch (error) {
    return { name: error.constructor.name, status: error.status, code: error.code, type: error.type };
  }
  return null;
}

const client = open(key, "u-js");
const chat = await client.chat.completions.create({ model: "gpt-4o", messages, max_tokens: 20 });
let streamed = "";
const stream = await client.chat.completions.create({ model: "gpt-4o", messages, max_tokens: 20, stream: true });
for await (const chunk of stream) streamed += chunk.choices[0].delta.content ?? "";
const embedded = await client.embeddings.create({ model: "text-embedding-3-small", input: ["a", "b"] });
const response = await client.responses.create({ model: "gpt-4o", input: "hello", max_output_tokens: 20 });
const models = [];
for await (const model of client.models.list()) models.push(model.id);
const ask = (some) => () => some.chat.completions.create({ model: "gpt-4o", messages, max_tokens: 20 });

console.log(
  JSON.stringify({
    chat: chat.usage.completion_tokens,
    text: chat.choices[0].message.content,
    streamed,
    embedded: embedded.data.map((d) => d.embedding.length),
    response: response.output_text.length,
    models,
    unknown: await failure(ask(open("behest_sk_live_nobody", "u-js"))),
    exhausted: await failure(ask(open(spent, "u-js-spent"))),
    rated: await failure(ask(open(rated, "u-js-rated", { maxRetries: 0 }))),
    invalid: await failure(() => client.chat.completions.create({ model: "gpt-4o", messages: [] })),
  }),
);
