//! How PostgreSQL is connected to: what sqlx reads of a URL, and what of libpq's TLS it leaves out.

use std::{fs, path::Path};

use rustls::pki_types::{CertificateDer, pem::PemObject};
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use url::Url;

use super::{ConfigError, settings::STORE_URL, source::Reader};

/// The names of the parameter that names the CA file.
const ROOT_CERT: [&str; 3] = ["sslrootcert", "ssl-root-cert", "ssl-ca"];

/// The variable that names it where there is no URL, as with libpq.
const ROOT_CERT_ENV: &str = "PGSSLROOTCERT";

/// The word for the CAs of the system instead of a file.
const SYSTEM: &str = "system";

/// Options from a URL; `None` when it is none.
///
/// # Errors
/// When the CA file cannot be used.
pub(super) fn from_url(text: &str, reader: &Reader<'_>) -> Result<Option<PgConnectOptions>, ConfigError> {
    let Ok(mut url) = Url::parse(text) else { return Ok(None) };
    let mut root_cert = None;
    let pairs: Vec<(String, String)> = url.query_pairs().into_owned().collect();
    if pairs.iter().any(|(name, _)| ROOT_CERT.contains(&name.as_str())) {
        let mut left = url.query_pairs_mut();
        left.clear();
        for (name, value) in pairs {
            if ROOT_CERT.contains(&name.as_str()) {
                root_cert = Some(value);
            } else {
                left.append_pair(&name, &value);
            }
        }
    }
    let Ok(options) = url.as_str().parse() else { return Ok(None) };
    with_ca(options, root_cert, reader).map(Some)
}

/// Adds the CA file, which may be named by the environment, and gives the mode libpq's meaning.
///
/// # Errors
/// When the file cannot be used.
pub(super) fn with_ca(
    options: PgConnectOptions,
    root_cert: Option<String>,
    reader: &Reader<'_>,
) -> Result<PgConnectOptions, ConfigError> {
    let is_in_url = root_cert.is_some();
    let named_by = if is_in_url { "sslrootcert" } else { ROOT_CERT_ENV };
    let root_cert = root_cert.or_else(|| reader.environment.get(ROOT_CERT_ENV).map(str::to_owned));
    let mode = options.get_ssl_mode();
    let options = match root_cert.as_deref() {
        Some(SYSTEM) if is_in_url => options.ssl_mode(PgSslMode::VerifyFull),
        Some(path) => {
            let path = reader.resolve(path);
            check(&path, named_by)?;
            let options = options.ssl_root_cert(&path);
            match mode {
                PgSslMode::Require => options.ssl_mode(PgSslMode::VerifyCa),
                PgSslMode::Allow => options.ssl_mode(PgSslMode::Prefer),
                _ => options,
            }
        }
        // sqlx takes `allow` for `disable`.
        None if matches!(mode, PgSslMode::Allow) => options.ssl_mode(PgSslMode::Prefer),
        None => options,
    };
    Ok(options)
}

/// Makes sure that the file has certificates.
fn check(path: &Path, named_by: &str) -> Result<(), ConfigError> {
    let wrong = |what: &str| {
        ConfigError::Conflict(format!(
            "{setting} (or {ROOT_CERT_ENV}): {named_by} names {file}, {what}: name a file of CA certificates in PEM, for \
             example ?sslmode=verify-full&sslrootcert=/etc/coucou/db-ca.pem, or {SYSTEM}",
            setting = STORE_URL.path,
            file = path.display()
        ))
    };
    let text = fs::read(path).map_err(|error| wrong(&format!("which cannot be read ({})", error.kind())))?;
    let mut certificates = 0;
    for certificate in CertificateDer::pem_slice_iter(&text) {
        certificate.map_err(|_| wrong("which is damaged"))?;
        certificates += 1;
    }
    if certificates == 0 { Err(wrong("which holds no certificate")) } else { Ok(()) }
}
