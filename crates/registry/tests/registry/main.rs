//! The registry as its users and its accidents meet it, over a folder, over memory, and over stores that fail.

mod accidents;
mod changes;
mod keeping;
mod scene;
mod together;
