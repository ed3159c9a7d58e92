// The stock OpenAI client, pointed at the gateway: a call, a stream, and the budget that ends it.
import OpenAI from "openai";

const client = new OpenAI({
  baseURL: process.env.BEHEST_BASE_URL ?? "http://127.0.0.1:8080/v1", // the line that changes
  apiKey: process.env.BEHEST_API_KEY,
  defaultHeaders: { "X-End-User-Id": "u-7", "X-Session-Id": "typescript-1" },
});
const messages = [{ role: "user" as const, content: "Hello" }];

const { data, response } = await client.chat.completions
  .create({ model: "gpt-4o", messages, max_tokens: 30 })
  .withResponse();
console.log("One call:", data.choices[0]?.message.content);
console.log(`   trace ${response.headers.get("x-trace-id")}, ${response.headers.get("x-budget-left")} left`);

process.stdout.write("A streamed one: ");
const stream = await client.chat.completions.create({ model: "gpt-4o", messages, max_tokens: 30, stream: true });
for await (const chunk of stream) {
  process.stdout.write(chunk.choices[0]?.delta.content ?? "");
}
console.log();

let calls = 2;
try {
  for (;;) {
    await client.chat.completions.create({ model: "gpt-4o", messages, max_tokens: 100 });
    calls += 1;
  }
} catch (error) {
  if (!(error instanceof OpenAI.APIError)) throw error;
  console.log(`Stopped before call ${calls + 1}: ${error.status} ${error.code}`);
  console.log(`   ${error.message}`);
}
