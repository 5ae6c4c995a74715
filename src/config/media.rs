//! `media` and `http.public_url`: files of messages, and the addresses under which they are handed out.

use std::{env, time::Duration};

use url::Url;

use super::{
    ConfigError, Media, duration, load,
    settings::{self, Setting},
    source::Reader,
};
use crate::links::LIFETIMES;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// What a setting that is a size must be.
const SIZE: &str = "must be a number with a unit (KiB, MiB or GiB), such as 100MiB";

/// Reads the settings; `registered` is the URL of the registration.
///
/// # Errors
/// The first that is wrong, and a file that may be larger than the cache.
pub(super) fn media(reader: &Reader<'_>, registered: Option<&str>) -> Result<Media, ConfigError> {
    let must = "must be an http or https URL without user, query or fragment";
    let public_url = reader.parsed(&settings::PUBLIC_URL, must, load::plain_url)?;
    let must = format!("{}; from 1s to 30d", duration::MUST);
    let url_lifetime = reader.parsed(&settings::MEDIA_URL_LIFETIME, &must, |text| {
        duration::parse(text).filter(|lifetime| LIFETIMES.contains(lifetime))
    })?;
    let must = format!("{}; from 1s to 1h", duration::MUST);
    let timeout = reader.parsed(&settings::MEDIA_TIMEOUT, &must, |text| {
        let range = Duration::from_secs(1)..=Duration::from_hours(1);
        duration::parse(text).filter(|timeout| range.contains(timeout))
    })?;
    let concurrency =
        reader.parsed(&settings::MEDIA_CONCURRENCY, "must be a number from 1 to 64", |text| {
            text.parse().ok().filter(|count| (1..=64).contains(count))
        })?;
    let max_size = size(reader, &settings::MEDIA_MAX_SIZE)?.unwrap_or(100 * MIB);
    let cache_size = size(reader, &settings::MEDIA_CACHE_SIZE)?;
    if cache_size.is_some_and(|cache| cache < max_size) {
        return Err(ConfigError::Conflict(
            "media.cache_size (COUCOU_MEDIA_CACHE_SIZE) is less than media.max_size (COUCOU_MEDIA_MAX_SIZE): a file \
             has to fit into the cache, so raise the one or lower the other"
                .to_owned(),
        ));
    }
    let folder = reader.given(&settings::MEDIA_FOLDER)?;
    Ok(Media {
        public_url: public_url.or_else(|| load::plain_url(registered?)).map(without_slash),
        url_lifetime: url_lifetime.unwrap_or(Duration::from_hours(24)),
        max_size,
        timeout: timeout.unwrap_or(Duration::from_mins(2)),
        concurrency: concurrency.unwrap_or(4),
        cache_size: cache_size.unwrap_or_else(|| GIB.max(max_size)),
        folder: folder.map_or_else(env::temp_dir, |folder| reader.resolve(folder.text)),
    })
}

/// The same, so that paths can be put behind it.
fn without_slash(mut url: Url) -> Url {
    let path = url.path().trim_end_matches('/').to_owned();
    url.set_path(&path);
    url
}

fn size(reader: &Reader<'_>, setting: &'static Setting) -> Result<Option<u64>, ConfigError> {
    reader.parsed(setting, SIZE, parse)
}

/// A whole number of bytes, not zero, with a unit.
fn parse(text: &str) -> Option<u64> {
    let (number, unit) = text.split_at(text.bytes().take_while(u8::is_ascii_digit).count());
    let unit = match unit.trim() {
        "KiB" => KIB,
        "MiB" => MIB,
        "GiB" => GIB,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit).filter(|bytes| *bytes > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_has_a_unit() {
        for (text, expected) in [("1KiB", KIB), ("100MiB", 100 * MIB), ("2 GiB", 2 * GIB)] {
            assert_eq!(parse(text), Some(expected), "{text}");
        }
        for bad in ["", "100", "MiB", "0MiB", "-1MiB", "1.5GiB", "1MB", "1mib", "99999999999999GiB"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
