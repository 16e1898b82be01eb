// Prompts that the views offer before the user writes any.

export const EXAMPLE_PROMPTS = [
  "What is the status of my order #12345?",
  "My parcel arrived with a dent. What now?",
  "Can I return shoes that I have worn once?",
  "Why was my card charged twice?",
  "How long does delivery to Norway take?",
];
