//! The whole way under load: a homeserver that pushes as Synapse does, coucou's own binary, a webhook that
//! checks every message. `make bench` runs it.
//!
//! Absolute figures are those of the machine it runs on, with generator, database and webhook on the same
//! cores. What counts are the ratios: against raw vodozemac on the same ciphertexts in the same run, and
//! against the same load on a small store.
#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    clippy::cast_precision_loss,
    reason = "a measurement that cannot be made ends the run; counts are far below what an f64 holds"
)]

#[path = "load"]
mod load {
    pub(crate) mod baseline;
    pub(crate) mod fill;
    pub(crate) mod measure;
    pub(crate) mod report;
    pub(crate) mod runs;
    pub(crate) mod scene;
    pub(crate) mod sink;
}

#[path = "../tests"]
#[expect(unused_imports, reason = "the rig offers more than a load needs")]
mod rig {
    pub(crate) mod support;
}

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

use load::{report::Report, runs, scene::Backend};

/// Measures coucou under load.
#[derive(Debug, Parser)]
pub(crate) struct Options {
    /// What to measure; everything when nothing is named.
    #[arg(value_enum)]
    only: Vec<Measurement>,
    /// On which database; both when none is named.
    #[arg(long, value_enum)]
    store: Option<Backend>,
    /// Messages of the throughput and growth runs.
    #[arg(long, default_value_t = 20_000)]
    messages: usize,
    /// Rooms that they are spread over.
    #[arg(long, default_value_t = 50)]
    rooms: usize,
    /// Rooms of the wide run.
    #[arg(long, default_value_t = 2_000)]
    wide: usize,
    /// Room keys of the intake run.
    #[arg(long, default_value_t = 10_000)]
    keys: usize,
    /// Seconds of the steady run, at 100 messages a second, and of the paced one, at 5,000.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Stored sessions and messages of the largest store of the growth run; a tenth of them is the middle one, and
    /// what is stored in the wide run.
    #[arg(long, default_value_t = 1_000_000)]
    stored: i64,
    /// Stored messages of the run that asks for statistics; a tenth as many sessions are there.
    #[arg(long, default_value_t = 1_000_000)]
    told: i64,
    /// Writes a page with the table, and the plot, into this folder.
    #[arg(long)]
    write: Option<PathBuf>,
    /// What cargo tells every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

/// A measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Measurement {
    /// As many messages as there are, as fast as they are taken.
    Throughput,
    /// A hundred messages a second: from push to webhook.
    Steady,
    /// Five thousand messages a second.
    Paced,
    /// Room keys, in transactions of a hundred.
    Keys,
    /// The same load on a small and on larger stores.
    Growth,
    /// Messages of very many rooms in turn.
    Wide,
    /// Two processes on one store.
    Instances,
    /// Doing nothing.
    Idle,
    /// A webhook that takes 50 ms for an answer.
    Slow,
    /// Statistics and metrics of a store that has been in use for long.
    Stats,
}

#[tokio::main]
async fn main() {
    let options = Options::parse();
    let all = Measurement::value_variants();
    let chosen: Vec<_> = if options.only.is_empty() { all.to_vec() } else { options.only.clone() };
    let stores = options.store.map_or_else(|| vec![Backend::Postgres, Backend::Sqlite], |one| vec![one]);
    let mut report = Report::new(load::baseline::run(options.messages.min(10_000)));
    for backend in stores {
        for measurement in &chosen {
            println!("--- {} on {}", measurement.name(), backend.name());
            match measurement {
                Measurement::Throughput => runs::throughput(backend, &options, &mut report).await,
                Measurement::Steady => runs::steady(backend, &options, &mut report).await,
                Measurement::Paced => runs::paced(backend, &options, &mut report).await,
                Measurement::Keys => runs::keys(backend, &options, &mut report).await,
                Measurement::Growth => runs::growth(backend, &options, &mut report).await,
                Measurement::Wide => runs::wide(backend, &options, &mut report).await,
                Measurement::Instances => runs::instances(backend, &options, &mut report).await,
                Measurement::Idle => runs::idle(backend, &mut report).await,
                Measurement::Slow => runs::slow(backend, &options, &mut report).await,
                Measurement::Stats => runs::stats(backend, &options, &mut report).await,
            }
        }
    }
    println!("\n{}", report.table());
    if let Some(folder) = &options.write {
        report.write(folder);
    }
}

impl Measurement {
    fn name(self) -> &'static str {
        match self {
            Self::Throughput => "throughput",
            Self::Steady => "steady",
            Self::Paced => "paced",
            Self::Keys => "keys",
            Self::Growth => "growth",
            Self::Wide => "many rooms",
            Self::Instances => "two instances",
            Self::Idle => "idle",
            Self::Slow => "slow webhook",
            Self::Stats => "statistics",
        }
    }
}
