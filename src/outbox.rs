//! Delivering what is in the store.
