// OpenAI's client for Node, with its own tool loop.
import assert from "node:assert/strict";
import { BASE_URL, MODEL, QUESTION, STATUS, load, run, version } from "./checks.mjs";

const { default: OpenAI } = await load("openai");
const client = new OpenAI({ baseURL: BASE_URL, apiKey: "none" });
const messages = [{ role: "user", content: QUESTION }];
const parameters = {
  type: "object", additionalProperties: false, required: ["order"],
  properties: { order: { type: "integer", minimum: 0, maximum: 99999 } },
};
const schema = {
  type: "object", additionalProperties: false, required: ["topic", "urgent"],
  properties: { topic: { enum: ["delivery", "payment", "other"] }, urgent: { type: "boolean" } },
};

function orderStatus(called) {
  return {
    type: "function",
    function: {
      name: "order_status", description: "Looks up where an order is.", parameters, parse: JSON.parse,
      function: ({ order }) => {
        called.push(order);
        return STATUS;
      },
    },
  };
}

await run(version("openai"), {
  tools: async () => {
    const called = [];
    const tool = orderStatus(called);
    // A tool that is named ends the client's loop after its call.
    const tool_choice = { type: "function", function: { name: "order_status" } };
    const forced = client.chat.completions.runTools({ model: MODEL, messages, tools: [tool], tool_choice });
    await forced.done();
    assert.equal(called.length, 1);
    // The same loop, with the call and its result in the conversation, until the model answers.
    const loop = client.chat.completions.runTools({ model: MODEL, messages: forced.messages, tools: [tool] }, { maxChatCompletions: 2 });
    await loop.done();
    assert.ok(loop.messages.length > forced.messages.length);
  },
  structured: async () => {
    const answer = await client.chat.completions.parse({
      model: MODEL, messages, response_format: { type: "json_schema", json_schema: { name: "ticket", schema, strict: true } },
    });
    const ticket = JSON.parse(answer.choices[0].message.content);
    assert.equal(typeof ticket.urgent, "boolean");
  },
  streaming: async () => {
    const stream = client.chat.completions.stream({
      model: MODEL, messages, tools: [orderStatus([])], tool_choice: "required", stream_options: { include_usage: true },
    });
    const final = await stream.finalChatCompletion();
    JSON.parse(final.choices[0].message.tool_calls[0].function.arguments);
    let pieces = 0;
    for await (const chunk of await client.chat.completions.create({ model: MODEL, messages, stream: true })) {
      pieces += chunk.choices[0]?.delta?.content ? 1 : 0;
    }
    assert.ok(pieces > 1);
  },
});
