//! A glob over ids: `*` stands for any run of characters, everything else for itself.

use std::fmt;

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
