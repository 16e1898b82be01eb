//! The engine against the fake model: stories of many requests.

mod constraints;
mod drafts;
mod leases;
mod lifecycle;
mod order;
mod pool;
mod prefix;
mod refusals;
mod same_tokens;
mod scene;
mod turns;
