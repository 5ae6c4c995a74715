//! Wiring, start and stop order.

use crate::config::Config;

/// Why the service ended.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The service is not part of this build.
    #[error("this build has no service to run")]
    Unavailable,
}

/// Runs the service until it is told to stop.
///
/// # Errors
/// When it cannot start.
pub async fn run(_config: Config) -> Result<(), AppError> {
    std::future::ready(Err(AppError::Unavailable)).await
}
