// The Vercel AI SDK with its provider for servers that have OpenAI's API, and with its provider for OpenAI.
import assert from "node:assert/strict";
import { BASE_URL, MODEL, QUESTION, STATUS, load, run, version } from "./checks.mjs";

const { generateObject, generateText, stepCountIs, streamObject, streamText, tool } = await load("ai");
const { createOpenAICompatible } = await load("@ai-sdk/openai-compatible");
const { createOpenAI } = await load("@ai-sdk/openai");
const { z } = await load("zod");

// Without this setting the provider puts the schema into the prompt only, and a small model does not follow it.
const lory = createOpenAICompatible({ name: "lory", baseURL: BASE_URL, supportsStructuredOutputs: true });
const models = [lory(MODEL), createOpenAI({ baseURL: BASE_URL, apiKey: "none" }).chat(MODEL)];
const Ticket = z.object({ topic: z.enum(["delivery", "payment", "other"]), urgent: z.boolean() });
const tools = {
  order_status: tool({
    description: "Looks up where an order is.",
    inputSchema: z.object({ order: z.number().int().min(0).max(99999) }),
    execute: async () => STATUS,
  }),
};
// The first step calls the tool, the second one answers.
const loop = { tools, stopWhen: stepCountIs(2), prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? "required" : "auto" }) };

await run(`${version("ai")}, ${version("@ai-sdk/openai-compatible")}, ${version("@ai-sdk/openai")}`, {
  tools: async () => {
    for (const model of models) {
      const { steps } = await generateText({ model, prompt: QUESTION, ...loop });
      assert.equal(steps.length, 2);
      assert.equal(steps[0].toolResults[0].output, STATUS);
      assert.ok(steps[1].text || steps[1].toolCalls.length > 0);
    }
  },
  structured: async () => {
    for (const model of models) {
      const { object } = await generateObject({ model, prompt: QUESTION, schema: Ticket });
      assert.ok(Ticket.parse(object));
    }
  },
  streaming: async () => {
    for (const model of models) {
      const stream = streamText({ model, prompt: QUESTION, ...loop });
      const kinds = new Set();
      for await (const part of stream.fullStream) {
        if (part.type === "error") throw part.error;
        kinds.add(part.type);
      }
      assert.ok(kinds.has("tool-call") && kinds.has("finish"), [...kinds].join());
      let pieces = 0;
      for await (const _ of streamText({ model, prompt: "Hello!" }).textStream) pieces += 1;
      assert.ok(pieces > 1);
      const objects = streamObject({ model, prompt: QUESTION, schema: Ticket });
      for await (const _ of objects.partialObjectStream);
      assert.ok(Ticket.parse(await objects.object));
    }
  },
});
