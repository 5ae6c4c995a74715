//! End-to-end encryption: one `OlmMachine` for each account, over a store of ours.

pub mod store;
