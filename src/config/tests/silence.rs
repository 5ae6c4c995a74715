use std::time::Duration;

use super::load;
use crate::model::SilenceSettings;

/// Values that a setting must not have: the variable, its value, and what is said of it.
pub(super) const MALFORMED: &[(&str, &str, &str)] = &[
    (
        "COUCOU_SILENCE_ENABLED",
        "sometimes",
        "silence.enabled must be true or false, but COUCOU_SILENCE_ENABLED has \"sometimes\": set it in coucou.yaml or \
         as COUCOU_SILENCE_ENABLED, for example COUCOU_SILENCE_ENABLED=true",
    ),
    (
        "COUCOU_SILENCE_AFTER",
        "30m",
        "silence.after must be a number with a unit (s, m, h, d or w), such as 90s, 12h or 30d, or 0; from 1h to 30d, \
         but COUCOU_SILENCE_AFTER has \"30m\": set it in coucou.yaml or as COUCOU_SILENCE_AFTER, for example \
         COUCOU_SILENCE_AFTER=6h",
    ),
    (
        "COUCOU_SILENCE_TRANSACTIONS_AFTER",
        "2d",
        "silence.transactions_after must be a number with a unit (s, m, h, d or w), such as 90s, 12h or 30d, or 0; \
         from 1s to 1d, but COUCOU_SILENCE_TRANSACTIONS_AFTER has \"2d\": set it in coucou.yaml or as \
         COUCOU_SILENCE_TRANSACTIONS_AFTER, for example COUCOU_SILENCE_TRANSACTIONS_AFTER=15m",
    ),
];

#[test]
fn silence_is_told_unless_it_is_turned_off() {
    let set = |after, transactions_after| Some(SilenceSettings { after, transactions_after });
    let by_default = set(Duration::from_hours(6), Duration::from_mins(15));
    assert_eq!(load("", &[]).unwrap().silence, by_default);
    let file = "silence: {after: 2d, transactions_after: 1h}";
    assert_eq!(load(file, &[]).unwrap().silence, set(Duration::from_hours(48), Duration::from_hours(1)));
    assert_eq!(load("silence: {enabled: false, after: 2d}", &[]).unwrap().silence, None);
    assert_eq!(load(file, &[("COUCOU_SILENCE_ENABLED", "false")]).unwrap().silence, None);
}
