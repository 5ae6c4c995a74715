//! Which store: PostgreSQL when one is configured, else a SQLite file; and the key that protects it.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use rand::{TryRngCore, rngs::OsRng};
use secrecy::SecretString;
use sqlx::postgres::PgConnectOptions;

use super::{
    ConfigError, Fallback, StoreSettings,
    load::{boolean, missing},
    postgres,
    settings::{self, Setting, other},
    source::{Given, Reader},
};
use crate::store::Location;

/// A shorter pickle key is remarked on: it is all that protects a stolen database.
const SHORT_PICKLE_KEY: usize = 16;

/// Chooses the store.
///
/// # Errors
/// When what is set does not name one, or its key is missing.
pub(super) fn choose(reader: &Reader<'_>, warnings: &mut Vec<String>) -> Result<StoreSettings, ConfigError> {
    let must = "must be a number from 1 to 100";
    let pool_size = reader.parsed(&settings::POOL_SIZE, must, |text| {
        text.parse().ok().filter(|size| (1..=100).contains(size))
    })?;
    let pool_size = pool_size.unwrap_or(10);
    let pickle_key = reader.given(&settings::PICKLE_KEY)?.map(|given| given.text);
    if pickle_key.as_ref().is_some_and(|key| key.len() < SHORT_PICKLE_KEY) {
        warnings.push(format!(
            "store.pickle_key is shorter than {SHORT_PICKLE_KEY} characters, which is easy to guess: \
             `openssl rand -base64 32` makes a good one for the next store"
        ));
    }
    let fallback = fallback(reader)?;
    match find(reader, warnings)? {
        Found::Postgres { url, origin } => {
            if fallback.is_on {
                check_folder(&fallback.file, &settings::FALLBACK_FILE, settings::FALLBACK_FILE.example)?;
            }
            let options = options(&url, reader)?;
            let chosen_because = format!(
                "PostgreSQL, {} on {}:{}, because {origin} names it",
                options.get_database().map_or_else(
                    || "the default database".to_owned(),
                    |database| format!("database {database}")
                ),
                options.get_host(),
                options.get_port(),
            );
            let pickle_key = pickle_key.ok_or_else(|| {
                missing(
                    &settings::PICKLE_KEY,
                    ", and with PostgreSQL it is required (openssl rand -base64 32)",
                )
            })?;
            Ok(StoreSettings {
                location: Location::Postgres { options: Box::new(options), pool_size },
                pickle_key: SecretString::from(pickle_key),
                chosen_because,
                fallback: Some(fallback),
            })
        }
        Found::Sqlite { path, why } => {
            if fallback.is_on {
                warnings.push(
                    "store.fallback does nothing: it stands in for PostgreSQL, and the store is SQLite"
                        .to_owned(),
                );
            }
            check_folder(&path, &settings::STORE_URL, "sqlite:coucou.db")?;
            let (pickle_key, key_from) = if let Some(key) = pickle_key {
                (SecretString::from(key), "the pickle key that is set".to_owned())
            } else {
                let file = key_file(&path);
                let from = format!("the pickle key in {}", file.display());
                (key_beside(&path, &file)?, from)
            };
            let chosen_because = format!("SQLite, file {}, with {key_from}, because {why}", path.display());
            Ok(StoreSettings {
                location: Location::Sqlite { path },
                pickle_key,
                chosen_because,
                fallback: None,
            })
        }
    }
}

/// What stands in for PostgreSQL.
fn fallback(reader: &Reader<'_>) -> Result<Fallback, ConfigError> {
    let is_on = reader.parsed(&settings::FALLBACK, "must be sqlite or off", |text| match text {
        "sqlite" => Some(true),
        "off" | "false" => Some(false),
        _ => None,
    })?;
    let file = reader.parsed(&settings::FALLBACK_FILE, "must be the path of a file", |text| {
        (!text.ends_with('/')).then(|| reader.resolve(text))
    })?;
    let file = file.unwrap_or_else(|| reader.resolve(settings::FALLBACK_FILE.example));
    Ok(Fallback { file, is_on: is_on.unwrap_or(false) })
}

/// What is set.
enum Found {
    Postgres { url: Source, origin: String },
    Sqlite { path: PathBuf, why: String },
}

/// A PostgreSQL URL, or the parts of one.
enum Source {
    Url(Given),
    Parts,
}

fn find(reader: &Reader<'_>, warnings: &mut Vec<String>) -> Result<Found, ConfigError> {
    let wanted = wanted(reader)?;
    let ignored = wanted == Some(false);
    let is_alias = |origin: &str| settings::STORE_URL.aliases.contains(&origin);
    let mut why = None;
    let mut given = reader.in_environment(&settings::STORE_URL)?;
    let by_alias = given.as_ref().is_some_and(|given| is_alias(&given.origin) && is_postgres(&given.text));
    let by_parts = given.is_none() && reader.environment.get(other::ADDON_HOST).is_some();
    if by_alias || by_parts {
        if ignored {
            let what = given.take().map_or_else(|| other::ADDON_HOST.to_owned(), |given| given.origin);
            why = Some(format!("{}=false ignores {what}", other::USE_POSTGRES_STORE));
        } else if by_parts {
            return Ok(Found::Postgres { url: Source::Parts, origin: "POSTGRESQL_ADDON_HOST".to_owned() });
        }
    }
    let given = match given {
        Some(given) => Some(given),
        None => reader.in_file(&settings::STORE_URL)?,
    };
    let Some(given) = given else {
        if wanted == Some(true) {
            return Err(missing(
                &settings::STORE_URL,
                &format!(", and {}=true wants PostgreSQL", other::USE_POSTGRES_STORE),
            ));
        }
        let path = reader.resolve("coucou.db");
        return Ok(Found::Sqlite {
            path,
            why: why.unwrap_or_else(|| "no PostgreSQL is configured".to_owned()),
        });
    };
    let origin = given.origin.clone();
    if is_postgres(&given.text) {
        if ignored {
            warnings.push(format!(
                "{}=false does not count: {origin} names PostgreSQL",
                other::USE_POSTGRES_STORE
            ));
        }
        return Ok(Found::Postgres { url: Source::Url(given), origin });
    }
    let must = "must be postgres://user:password@host:port/database or sqlite:path, a file";
    let path = sqlite_path(&given.text).ok_or_else(|| given.invalid(&settings::STORE_URL, must))?;
    Ok(Found::Sqlite { path: reader.resolve(path), why: format!("{origin} names it") })
}

/// What `USE_POSTGRES_STORE` says.
fn wanted(reader: &Reader<'_>) -> Result<Option<bool>, ConfigError> {
    let Some(text) = reader.environment.get(other::USE_POSTGRES_STORE) else { return Ok(None) };
    let wanted = boolean(text.trim()).ok_or_else(|| {
        ConfigError::Conflict(format!(
            "{name} must be true or false, but is {text:?}: for example {name}=true",
            name = other::USE_POSTGRES_STORE
        ))
    })?;
    Ok(Some(wanted))
}

fn is_postgres(url: &str) -> bool {
    url.starts_with("postgres://") || url.starts_with("postgresql://")
}

/// The file that `sqlite:path`, `sqlite://path` or `sqlite:///absolute` names.
fn sqlite_path(url: &str) -> Option<&str> {
    let path = url.strip_prefix("sqlite:")?;
    let path = path.strip_prefix("//").unwrap_or(path);
    // In memory the keys would be gone at the next start.
    let file = !path.is_empty() && !path.starts_with(':') && !path.contains('?') && !path.ends_with('/');
    file.then_some(path)
}

fn options(source: &Source, reader: &Reader<'_>) -> Result<PgConnectOptions, ConfigError> {
    match source {
        Source::Url(given) => postgres::from_url(given.text.trim(), reader)?.ok_or_else(|| {
            let must = "must be postgres://user:password@host:port/database, with special characters in the \
                        password percent-encoded, and an sslmode that libpq knows";
            given.invalid(&settings::STORE_URL, must)
        }),
        Source::Parts => {
            let part = |name: &str| {
                reader.environment.get(name).ok_or_else(|| {
                    ConfigError::Conflict(format!(
                        "{} is set, but {name} is not: set it, or all in one as COUCOU_STORE_URL, for example \
                         COUCOU_STORE_URL={}",
                        other::ADDON_HOST,
                        settings::STORE_URL.example
                    ))
                })
            };
            let port = reader.environment.get(other::ADDON_PORT).unwrap_or("5432");
            let port = port.trim().parse().map_err(|_| {
                ConfigError::Conflict(format!(
                    "{name} must be a port number, but is {port:?}: for example {name}=5432",
                    name = other::ADDON_PORT
                ))
            })?;
            let options = PgConnectOptions::new()
                .host(part(other::ADDON_HOST)?.trim())
                .port(port)
                .database(part(other::ADDON_DB)?.trim())
                .username(part(other::ADDON_USER)?.trim())
                .password(part(other::ADDON_PASSWORD)?);
            postgres::with_ca(options, None, reader)
        }
    }
}

fn check_folder(file: &Path, setting: &Setting, example: &str) -> Result<(), ConfigError> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    match folder {
        Some(folder) if !folder.is_dir() => {
            let (path, env) = (setting.path, setting.env.unwrap_or_default());
            Err(ConfigError::Conflict(format!(
                "{path} ({env}) names the file {}, but there is no folder {}: make it, or name another, for \
                 example {env}={example}",
                file.display(),
                folder.display()
            )))
        }
        _ => Ok(()),
    }
}

/// `coucou.db.key` beside `coucou.db`.
fn key_file(store: &Path) -> PathBuf {
    let mut name = store.as_os_str().to_owned();
    name.push(".key");
    PathBuf::from(name)
}

/// The pickle key beside a SQLite store, made when both are new.
fn key_beside(store: &Path, file: &Path) -> Result<SecretString, ConfigError> {
    let cannot = |what: &str, error: io::Error| {
        ConfigError::Conflict(format!(
            "the pickle key of the SQLite store cannot be {what} {}: {error}; make that possible, or set \
             store.pickle_key (COUCOU_STORE_PICKLE_KEY)",
            file.display()
        ))
    };
    if let Some(key) = read_key(file).map_err(|error| cannot("read from", error))? {
        return Ok(key);
    }
    if fs::metadata(store).is_ok_and(|store| store.len() > 0) {
        return Err(missing(
            &settings::PICKLE_KEY,
            &format!(
                ": {} is there, but {} with its key is not; put that file back, or the key",
                store.display(),
                file.display()
            ),
        ));
    }
    make_key(file).map_err(|error| cannot("written to", error))?;
    // Another process may have been first; then its key counts.
    let key = read_key(file).map_err(|error| cannot("read from", error))?;
    key.ok_or_else(|| cannot("read from", io::ErrorKind::UnexpectedEof.into()))
}

fn read_key(file: &Path) -> io::Result<Option<SecretString>> {
    match fs::read_to_string(file) {
        Ok(text) => Ok(Some(text.trim()).filter(|key| !key.is_empty()).map(SecretString::from)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes a fresh key, whole or not at all, never over another one, readable by us alone.
fn make_key(file: &Path) -> io::Result<()> {
    let mut key = [0_u8; 32];
    OsRng.try_fill_bytes(&mut key).map_err(io::Error::other)?;
    let mut temporary = file.as_os_str().to_owned();
    temporary.push(format!(".{}", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let written = write_private(&temporary, &format!("{}\n", STANDARD.encode(key)))
        .and_then(|()| fs::hard_link(&temporary, file));
    let _ = fs::remove_file(&temporary);
    match written {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let mut file: File = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}
