use super::*;

/// A value that each setting of files must refuse, and what is said.
pub(super) const MALFORMED: &[(&str, &str, &str)] = &[
    (
        "COUCOU_HTTP_PUBLIC_URL",
        "https://coucou.example.org/?x",
        "http.public_url must be an http or https URL without user, query or fragment, but COUCOU_HTTP_PUBLIC_URL \
         has \"https://coucou.example.org/?x\": set it in coucou.yaml or as COUCOU_HTTP_PUBLIC_URL, for example \
         COUCOU_HTTP_PUBLIC_URL=https://coucou.example.org",
    ),
    (
        "COUCOU_MEDIA_URL_LIFETIME",
        "0",
        "media.url_lifetime must be a number with a unit (s, m, h, d or w), such as 90s, 12h or 30d, or 0; from 1s \
         to 30d, but COUCOU_MEDIA_URL_LIFETIME has \"0\": set it in coucou.yaml or as COUCOU_MEDIA_URL_LIFETIME, \
         for example COUCOU_MEDIA_URL_LIFETIME=24h",
    ),
    (
        "COUCOU_MEDIA_MAX_SIZE",
        "100",
        "media.max_size must be a number with a unit (KiB, MiB or GiB), such as 100MiB, but COUCOU_MEDIA_MAX_SIZE \
         has \"100\": set it in coucou.yaml or as COUCOU_MEDIA_MAX_SIZE, for example COUCOU_MEDIA_MAX_SIZE=100MiB",
    ),
    (
        "COUCOU_MEDIA_TIMEOUT",
        "2h",
        "media.timeout must be a number with a unit (s, m, h, d or w), such as 90s, 12h or 30d, or 0; from 1s to 1h, \
         but COUCOU_MEDIA_TIMEOUT has \"2h\": set it in coucou.yaml or as COUCOU_MEDIA_TIMEOUT, for example \
         COUCOU_MEDIA_TIMEOUT=2m",
    ),
    (
        "COUCOU_MEDIA_CONCURRENCY",
        "0",
        "media.concurrency must be a number from 1 to 64, but COUCOU_MEDIA_CONCURRENCY has \"0\": set it in \
         coucou.yaml or as COUCOU_MEDIA_CONCURRENCY, for example COUCOU_MEDIA_CONCURRENCY=4",
    ),
    (
        "COUCOU_MEDIA_CACHE_SIZE",
        "lots",
        "media.cache_size must be a number with a unit (KiB, MiB or GiB), such as 100MiB, but \
         COUCOU_MEDIA_CACHE_SIZE has \"lots\": set it in coucou.yaml or as COUCOU_MEDIA_CACHE_SIZE, for example \
         COUCOU_MEDIA_CACHE_SIZE=1GiB",
    ),
];

#[test]
fn files_have_limits_and_an_address_by_default() {
    let media = load("", &[]).unwrap().media;
    assert_eq!((media.public_url, media.url_lifetime), (None, Duration::from_hours(24)));
    assert_eq!((media.max_size, media.cache_size, media.concurrency), (100 << 20, 1 << 30, 4));
    assert_eq!((media.timeout, media.folder), (Duration::from_mins(2), std::env::temp_dir()));
    let large = load("media: {max_size: 2GiB}", &[]).unwrap().media;
    assert_eq!(large.cache_size, 2 << 30, "the cache holds the largest file");
    let said = message("media: {max_size: 2GiB, cache_size: 1GiB}", &[]);
    assert!(said.contains("COUCOU_MEDIA_CACHE_SIZE") && said.contains("COUCOU_MEDIA_MAX_SIZE"), "{said}");
}

#[test]
fn the_address_is_the_one_that_is_set_else_the_registrations() {
    let registered = |url: &str, file: &str| {
        let registration = format!("{{url: {url}, namespaces: {{}}}}");
        let folder = folder_with(&[("registration.yaml", &registration), ("coucou.yaml", file)]);
        load_in(folder.path(), &LEAST).unwrap().media.public_url.map(|url| url.to_string())
    };
    let url = |text: &str| Some(text.to_owned());
    assert_eq!(registered("https://one.example.org", ""), url("https://one.example.org/"));
    assert_eq!(registered("https://one.example.org/below/", ""), url("https://one.example.org/below"));
    let set = "http: {public_url: 'https://two.example.org/'}";
    assert_eq!(registered("https://one.example.org", set), url("https://two.example.org/"));
    for none in ["null", "''", "nonsense"] {
        assert_eq!(registered(none, ""), None, "{none}");
    }
}
