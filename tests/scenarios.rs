//! Scenarios told from outside, and the rules of the source tree.
//!
//! Each scenario runs the real binary. Most do it against a real Synapse and a real PostgreSQL, which the
//! rig in `support` starts; the ones about faults and timing use its fake homeserver.
#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, tells what it saw, and has no lifecycle to spawn on"
)]

mod support;

mod architecture;
mod bad_input;
mod bridges_on_synapse;
mod check_on_synapse;
mod contents_on_synapse;
mod dashboard_on_prometheus;
mod database_down_on_synapse;
mod deliveries_on_fake;
mod deploy_files;
mod deploy_on_synapse;
mod documentation;
mod edge_events_on_fake;
mod edge_events_on_synapse;
mod fallback_on_synapse;
mod faults_on_synapse;
mod flows_on_fake;
mod forgeries_on_synapse;
mod fuzzed_api_on_fake;
mod instances_on_synapse;
mod joins_on_fake;
mod joins_on_synapse;
mod key_lane_on_synapse;
mod keys_on_synapse;
mod kills_on_fake;
mod late_keys_on_synapse;
mod media_on_fake;
mod media_on_synapse;
mod owner_on_synapse;
mod recovery_on_synapse;
mod relay_on_fake;
mod relay_on_synapse;
mod rest_on_synapse;
mod rig;
mod silence_on_fake;
mod silence_on_synapse;
mod statements_on_fake;
mod store_faults_on_fake;
mod store_on_synapse;
mod tls_to_postgres;
mod tls_to_webhooks;
mod wrong_settings;
