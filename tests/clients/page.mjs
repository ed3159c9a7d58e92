// A page of an app: the stock `openai` package, in a browser. What came of it is told to the page's own server.

import OpenAI from "/node_modules/openai/index.mjs";

const { baseURL, key, spent } = await (await fetch("/settings")).json();
const ask = { model: "gpt-4o", max_tokens: 20, messages: [{ role: "user", content: "hello there" }] };

function client(apiKey) {
  return new OpenAI({ baseURL, apiKey, dangerouslyAllowBrowser: true, maxRetries: 0 });
}

async function attempt(what) {
  try {
    return await what();
  } catch (error) {
    return { name: error.constructor.name, status: error.status ?? null, code: error.code ?? null, message: error.message };
  }
}

const said = {};
said.chat = await attempt(async () => (await client(key).chat.completions.create(ask)).usage.completion_tokens);
said.streamed = await attempt(async () => {
  let text = "";
  for await (const chunk of await client(key).chat.completions.create({ ...ask, stream: true })) {
    text += chunk.choices[0]?.delta?.content ?? "";
  }
  return text.length > 0;
});
said.over = await attempt(() => client(spent).chat.completions.create(ask));
said.unknown = await attempt(() => client("nobody").chat.completions.create(ask));
said.left = await attempt(async () => {
  const { response } = await client(key).chat.completions.create(ask).withResponse();
  return response.headers.get("x-budget-left");
});
await fetch("/said", { method: "POST", body: JSON.stringify(said) });
