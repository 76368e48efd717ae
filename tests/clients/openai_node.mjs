// The official OpenAI client for Node against an engine: blocking, streamed, tools, schemas, errors.
//
// Run by engine/tests/clients.rs with the engine's base URL and the folder that holds the client.
import assert from "node:assert/strict";
import { createRequire } from "node:module";

const [url, folder] = process.argv.slice(2);
const OpenAI = createRequire(`${folder}/`)("openai");
const client = new OpenAI({ baseURL: url, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "What is the capital of France?" }];
const wanted = { model: "code", messages, temperature: 0, max_tokens: 8 };

async function blockingAndStreamedAnswersAgree() {
  const whole = await client.chat.completions.create(wanted);
  let text = "";
  let usage = null;
  for await (const chunk of await client.chat.completions.create({
    ...wanted,
    stream: true,
    stream_options: { include_usage: true },
  })) {
    text += chunk.choices[0]?.delta?.content ?? "";
    usage = chunk.usage ?? usage;
  }
  assert.equal(text, whole.choices[0].message.content);
  assert.equal(usage.total_tokens, whole.usage.total_tokens);
  const completion = await client.completions.create({ model: "code", prompt: "The capital of France is", temperature: 0, max_tokens: 2 });
  assert.equal(completion.choices[0].text, " Paris.");
}

const parameters = {
  type: "object",
  properties: { city: { type: "string", maxLength: 20 } },
  required: ["city"],
  additionalProperties: false,
};

async function toolsAreCalled() {
  const tools = [{ type: "function", function: { name: "weather", parameters } }];
  const forced = { ...wanted, max_tokens: 80, tools, tool_choice: "required", parallel_tool_calls: false };
  const whole = await client.chat.completions.create(forced);
  const call = whole.choices[0].message.tool_calls[0];
  assert.equal(typeof JSON.parse(call.function.arguments).city, "string");
  const streamed = await client.chat.completions.stream(forced).finalChatCompletion();
  assert.equal(streamed.choices[0].message.tool_calls[0].function.arguments, call.function.arguments);
}

async function schemasAreHeldTo() {
  const response_format = { type: "json_schema", json_schema: { name: "place", strict: true, schema: parameters } };
  const answer = await client.chat.completions.parse({ ...wanted, max_tokens: 80, response_format });
  assert.equal(typeof answer.choices[0].message.parsed.city, "string");
}

async function responsesAreUnderstood() {
  const asked = { model: "code", input: "What is 2 + 2?", temperature: 0, max_output_tokens: 8 };
  const whole = await client.responses.create(asked);
  let text = "";
  for await (const event of await client.responses.create({ ...asked, stream: true })) {
    if (event.type === "response.output_text.delta") text += event.delta;
  }
  assert.equal(text, whole.output_text);
}

async function errorsHaveTheirClasses() {
  await assert.rejects(client.chat.completions.create({ ...wanted, temperature: 9 }), (error) =>
    error instanceof OpenAI.BadRequestError && error.param === "temperature");
  await assert.rejects(client.chat.completions.create({ ...wanted, model: "none" }), OpenAI.NotFoundError);
}

for (const check of [
  blockingAndStreamedAnswersAgree,
  toolsAreCalled,
  schemasAreHeldTo,
  responsesAreUnderstood,
  errorsHaveTheirClasses,
]) {
  await check();
  console.log("ok", check.name);
}
