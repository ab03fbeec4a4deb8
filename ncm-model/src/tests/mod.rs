//! The model's tests: a kernel of maps, a compiler that starts from scratch, and what holds whatever comes.

mod bounds;
mod contract;
mod decoding;
mod digests;
mod epochs;
mod journal;
mod kernel;
mod leases;
mod merging;
mod policy;
mod policy_sizes;
mod policy_states;
mod policy_tables;
mod policy_updates;
mod properties;
mod restart;
mod room;
mod scratch;
mod states;
mod statuses;
mod tables;
mod versions;
