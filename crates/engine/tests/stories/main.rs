//! The engine with a fake model: stories of many requests, a file for each subject.

mod client_grammars;
mod client_shares;
mod constraints;
mod drafts;
mod fairness;
mod fixtures;
mod leases;
mod lifecycle;
mod prefix_cache;
mod rejected;
mod reservations;
mod same_tokens;
mod scheduling;
