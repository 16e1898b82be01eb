// What OpenAI's Node client makes of a running `lory serve`: argument 1 is its address, argument 2 the folder with the client. Ends
// with 0 if all of it is right.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [address, folder] = process.argv.slice(2);
const { default: OpenAI, toFile } = await import(
  pathToFileURL(createRequire(pathToFileURL(`${folder}/`)).resolve("openai")).href
);
const client = new OpenAI({ baseURL: `http://${address}/v1`, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "Hello!" }];
const limit = { max_completion_tokens: 12 };

const ids = [];
for await (const model of client.models.list()) ids.push(model.id);
assert.deepEqual(ids, ["tiny", "formal", "warm"]);

const whole = await client.chat.completions.create({ model: "warm", messages, ...limit });
assert.equal(whole.choices[0].finish_reason, "length");
assert.equal(whole.usage.completion_tokens, 12);

let text = "";
let usage = null;
const stream = await client.chat.completions.create({
  model: "warm", messages, ...limit, stream: true, stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  text += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(text, whole.choices[0].message.content);
assert.equal(usage.completion_tokens, 12);

const several = await client.chat.completions.create({
  model: "formal", messages, ...limit, n: 3, seed: 5, temperature: 1, logprobs: true, top_logprobs: 2,
});
assert.equal(new Set(several.choices.map((choice) => choice.message.content)).size, 3);
assert.equal(several.choices[2].logprobs.content.length, 12);

const schema = {
  type: "object",
  properties: { colour: { enum: ["red", "blue"] }, size: { type: "integer", minimum: 1, maximum: 9 } },
  required: ["colour", "size"],
  additionalProperties: false,
};
const shaped = await client.chat.completions.create({
  model: "warm", messages, temperature: 1.5, seed: 3, max_completion_tokens: 200,
  response_format: { type: "json_schema", json_schema: { name: "thing", schema, strict: true } },
});
const thing = JSON.parse(shaped.choices[0].message.content);
assert.ok(["red", "blue"].includes(thing.colour) && thing.size >= 1 && thing.size <= 9);

const tools = [{ type: "function", function: { name: "paint", parameters: schema, strict: true } }];
const ask = { model: "warm", messages, tools, tool_choice: "required", parallel_tool_calls: false, max_completion_tokens: 200 };
const called = await client.chat.completions.create(ask);
assert.equal(called.choices[0].finish_reason, "tool_calls");
const [call] = called.choices[0].message.tool_calls;
assert.equal(call.function.name, "paint");
JSON.parse(call.function.arguments);
// The client's own helper puts a streamed call together.
const final = await client.chat.completions.stream(ask).finalChatCompletion();
assert.deepEqual(final.choices[0].message.tool_calls[0].function.arguments, call.function.arguments);
const again = await client.chat.completions.create({
  model: "warm", tools, tool_choice: "none", max_completion_tokens: 4,
  messages: [...messages, called.choices[0].message, { role: "tool", tool_call_id: call.id, content: "Done." }],
});
assert.ok(again.choices[0].message.content);

const completion = await client.completions.create({ model: "tiny", prompt: "Hello", max_tokens: 6, logprobs: 1 });
assert.equal(completion.object, "text_completion");

const refused = (kind, param, call) =>
  assert.rejects(call, (error) => error instanceof kind && error.param === param);
await refused(OpenAI.BadRequestError, "temperature", client.chat.completions.create({ model: "warm", messages, temperature: 5 }));
await refused(OpenAI.BadRequestError, "stop[0]", client.chat.completions.create({ model: "warm", messages, stop: [""], stream: true }));
await refused(OpenAI.NotFoundError, "model", client.chat.completions.create({ model: "nobody", messages }));
await refused(OpenAI.BadRequestError, null, client.embeddings.create({ model: "tiny", input: "Hello" }));

// A training job, from the upload to the model that answers.
const rows = Array.from({ length: 24 }, (_, i) => JSON.stringify({ instruction: `Where is order ${100 + i}?`, output: `Yay, ${100 + i}.` }));
const file = await client.files.create({
  file: await toFile(Buffer.from(rows.join("\n")), "rows.jsonl"), purpose: "fine-tune",
});
let job = await client.fineTuning.jobs.create({
  model: "tiny", training_file: file.id, suffix: "sunny", hyperparameters: { n_epochs: 2, batch_size: 4 },
});
while (!["succeeded", "failed", "cancelled"].includes(job.status)) {
  await new Promise((wake) => setTimeout(wake, 50));
  job = await client.fineTuning.jobs.retrieve(job.id);
}
assert.equal(job.fine_tuned_model, "sunny@1", JSON.stringify(job.error));
const events = [];
for await (const event of client.fineTuning.jobs.listEvents(job.id, { limit: 5 })) events.push(event.message);
assert.equal(events[0], "The job has successfully completed");
assert.ok(await client.chat.completions.create({ model: "sunny@1", messages, ...limit }));

// A client that goes away in mid-stream leaves a server that answers.
const long = await client.chat.completions.create({ model: "warm", messages, max_completion_tokens: 300, stream: true });
for await (const _ of long) break;
assert.ok(await client.chat.completions.create({ model: "warm", messages, ...limit }));
console.log(JSON.stringify({ client: "openai for node", ok: true }));
