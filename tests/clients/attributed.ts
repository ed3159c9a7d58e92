// A program of Behest's users, as its documentation has them write it: the stock client, two headers, a call.
import OpenAI from "openai";

const [user, conversation] = process.argv.slice(2);
const client = new OpenAI({
  baseURL: process.env.BEHEST_BASE_URL,
  apiKey: process.env.BEHEST_API_KEY,
  defaultHeaders: { "X-End-User-Id": user, "X-Session-Id": `user-${user}-conv-${conversation}` },
});
const completion = await client.chat.completions.create({
  model: "gemini-2.5-flash",
  messages: [{ role: "user", content: "Sum this up for me." }],
});
console.log(completion.choices[0].message.content);
