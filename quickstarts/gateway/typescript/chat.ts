// The stock OpenAI client, pointed at the gateway: a call, a stream, and the budget that ends it.
import { randomUUID } from "node:crypto";
import OpenAI from "openai";

const client = new OpenAI({
  baseURL: process.env.BEHEST_BASE_URL ?? "http://127.0.0.1:8080/v1", // the line that changes
  apiKey: process.env.BEHEST_API_KEY,
  // Each run is a session of its own: a budget per session never begins anew.
  defaultHeaders: { "X-End-User-Id": "u-7", "X-Session-Id": `typescript-${randomUUID()}` },
});
const messages = [{ role: "user" as const, content: "Hello" }];

let calls = 0;
try {
  const { data, response } = await client.chat.completions
    .create({ model: "gpt-4o", messages, max_tokens: 30 })
    .withResponse();
  console.log("One call:", data.choices[0]?.message.content);
  console.log(`   trace ${response.headers.get("x-trace-id")}, ${response.headers.get("x-budget-left")} left`);
  calls += 1;

  process.stdout.write("A streamed one: ");
  const stream = await client.chat.completions.create({ model: "gpt-4o", messages, max_tokens: 30, stream: true });
  for await (const chunk of stream) {
    process.stdout.write(chunk.choices[0]?.delta.content ?? "");
  }
  console.log();
  calls += 1;

  for (;;) {
    await client.chat.completions.create({ model: "gpt-4o", messages, max_tokens: 100 });
    calls += 1;
  }
} catch (error) {
  if (!(error instanceof OpenAI.APIError) || error.status !== 402) throw error;
  console.log(`Stopped before call ${calls + 1}: ${error.status} ${error.code}`);
  console.log(`   ${error.message}`);
}
