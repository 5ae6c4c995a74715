//! What the process itself costs, as Linux tells it; elsewhere nothing is told.

use std::fs;

use super::{Metrics, as_float};

/// Ticks a second of the times in `/proc/self/stat`: 100 on every Linux that Rust runs on.
const TICKS: f64 = 100.0;

/// Measures it.
pub fn measure(metrics: &Metrics) {
    if let Some(kilobytes) = field(&read("/proc/self/status"), "VmRSS:") {
        metrics.resident_memory.set(&[], as_float(kilobytes) * 1024.0);
    }
    let stat = read("/proc/self/stat");
    // The command's name, in brackets, may hold anything; user and system time are the 12th and 13th after it.
    let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let number = |at: usize| fields.get(at).and_then(|text| text.parse::<u64>().ok());
    if let (Some(user), Some(system)) = (number(11), number(12)) {
        metrics.cpu.advance_to(as_float(user + system) / TICKS);
    }
    if let (Some(started), Some(booted)) = (number(19), field(&read("/proc/stat"), "btime")) {
        metrics.start_time.set(&[], as_float(booted) + as_float(started) / TICKS);
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        metrics.open_fds.count(&[], u64::try_from(open.count()).unwrap_or(u64::MAX));
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// The number after a name at the beginning of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}
