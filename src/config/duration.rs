//! Lengths of time as people write them: `30d`, `12h`, `90s`.

use std::time::Duration;

/// What a setting that is a length of time must be, for error messages.
pub(super) const MUST: &str = "must be a number with a unit (s, m, h, d or w), such as 90s, 12h or 30d, or 0";

/// A whole number with a unit: seconds, minutes, hours, days or weeks. `0` needs none.
#[must_use]
pub(super) fn parse(text: &str) -> Option<Duration> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    let number: u64 = number.parse().ok()?;
    let seconds = match unit.trim_start() {
        "" if number == 0 => 0,
        "s" => 1,
        "m" => 60,
        "h" => 60 * 60,
        "d" => 24 * 60 * 60,
        "w" => 7 * 24 * 60 * 60,
        _ => return None,
    };
    number.checked_mul(seconds).map(Duration::from_secs)
}

/// As [`parse`], and in milliseconds: `500ms`.
#[must_use]
pub(super) fn parse_short(text: &str) -> Option<Duration> {
    match text.trim().strip_suffix("ms") {
        Some(number) => number.trim_end().parse().ok().map(Duration::from_millis),
        None => parse(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_one_may_be_in_milliseconds() {
        assert_eq!(parse_short("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(parse_short("2s"), Some(Duration::from_secs(2)));
        for bad in ["ms", "-1ms", "1.5ms", "500"] {
            assert_eq!(parse_short(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_length_of_time_has_a_unit() {
        let hours = |count| Some(Duration::from_hours(count));
        for (text, expected) in [
            ("0", hours(0)),
            ("0d", hours(0)),
            ("12h", hours(12)),
            ("30d", hours(720)),
            (" 2 w ", hours(336)),
            ("120m", hours(2)),
            ("7200s", hours(2)),
        ] {
            assert_eq!(parse(text), expected, "{text}");
        }
        for bad in
            ["", "d", "30", "-1d", "1.5h", "1y", "1h30m", "99999999999999999999d", "18446744073709551615w"]
        {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
