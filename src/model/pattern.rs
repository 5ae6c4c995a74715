//! A glob over ids: `*` stands for any run of characters, everything else for itself.

use std::fmt;

use ruma::UserId;

/// A pattern such as `@instagram_*:example.org`; `*` matches any run of characters, also an empty one.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Pattern(String);

impl Pattern {
    /// Any text is a pattern.
    #[must_use]
    pub fn new(pattern: &str) -> Self {
        Self(pattern.to_owned())
    }

    /// Whether the whole of `text` matches.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        let Some((first, rest)) = self.0.split_once('*') else { return self.0 == text };
        let Some(mut text) = text.strip_prefix(first) else { return false };
        let mut parts: Vec<&str> = rest.split('*').collect();
        let last = parts.pop().unwrap_or_default();
        // Taking the leftmost match of each part leaves the most for those after it.
        for part in parts {
            let Some((_, after)) = text.split_once(part) else { return false };
            text = after;
        }
        text.ends_with(last)
    }

    /// The ghosts of a bridge as its bot's name tells them, the way that mautrix bridges are named:
    /// `@instagrambot:example.org` speaks for `@instagram_*:example.org`. `None` for a bot of another name.
    #[must_use]
    pub fn ghosts_of(bot: &UserId) -> Option<Self> {
        let name = bot.localpart().strip_suffix("bot")?;
        let name = name.strip_suffix('_').unwrap_or(name);
        // Old user ids may hold anything, a * too.
        let is_plain =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._=-/+".contains(&byte);
        (!name.is_empty() && name.bytes().all(is_plain))
            .then(|| Self(format!("@{name}_*:{}", bot.server_name())))
    }

    /// Returns what the only `*` stands for in `text`; `None` when the text does not match, or there are several.
    #[must_use]
    pub fn capture<'a>(&self, text: &'a str) -> Option<&'a str> {
        let (before, after) = self.0.split_once('*').filter(|(_, after)| !after.contains('*'))?;
        text.strip_prefix(before)?.strip_suffix(after)
    }

    /// Returns whether it matches nothing but itself.
    #[must_use]
    pub fn is_exact(&self) -> bool {
        !self.0.contains('*')
    }

    /// The pattern as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bots_name_tells_its_ghosts() {
        let ghosts = |localpart: &str| {
            let bot = UserId::parse(format!("@{localpart}:a.org")).unwrap();
            Pattern::ghosts_of(&bot).map(|pattern| pattern.as_str().to_owned())
        };
        assert_eq!(ghosts("instagrambot").as_deref(), Some("@instagram_*:a.org"));
        assert_eq!(ghosts("igbot").as_deref(), Some("@ig_*:a.org"));
        assert_eq!(ghosts("_meta_bot").as_deref(), Some("@_meta_*:a.org"));
        for odd in ["bot", "_bot", "instagram", "bots", "*bot", "a*bot", "Instagrambot"] {
            assert_eq!(ghosts(odd), None, "{odd}");
        }
    }

    #[test]
    fn a_star_stands_for_something() {
        let capture = |pattern, text| Pattern::new(pattern).capture(text);
        assert_eq!(capture("@ig_*:a.org", "@ig_42:a.org"), Some("42"));
        assert_eq!(capture("@ig_*:a.org", "@ig_:a.org"), Some(""));
        assert_eq!(capture("@ig_*:a.org", "@fb_42:a.org"), None);
        assert_eq!(capture("ab*ba", "aba"), None);
        assert_eq!(capture("@*_*:a.org", "@ig_42:a.org"), None);
        assert!(Pattern::new("@jane:a.org").is_exact() && !Pattern::new("@*:a.org").is_exact());
    }

    #[test]
    fn a_star_matches_any_run_and_nothing_else_is_special() {
        let cases = [
            ("@instagram_*:example.org", "@instagram_42:example.org", true),
            ("@instagram_*:example.org", "@instagram_:example.org", true),
            ("@instagram_*:example.org", "@instagram_42:evil.org", false),
            ("@instagram_*:example.org", "x@instagram_42:example.org", false),
            ("@instagram_*:example.org", "@instagram_42:example.org.evil", false),
            ("example.org", "example.org", true),
            ("example.org", "exampleXorg", false),
            ("*", "", true),
            ("**", "anything", true),
            ("*.example.org", "a.example.org", true),
            ("*.example.org", "example.org", false),
            ("a*b*c", "a-c-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("ab*ba", "aba", false),
            ("a*a", "a", false),
            ("*ü*", "grün", true),
        ];
        for (pattern, text, expected) in cases {
            assert_eq!(Pattern::new(pattern).matches(text), expected, "{pattern} on {text}");
        }
    }
}
