//! JSON as a consumer reads it whose numbers have no bounds.

use serde_json::Value;

/// Reads any JSON; a number that no type holds is null.
pub(crate) fn read(text: &[u8]) -> serde_json::Result<Value> {
    serde_json::from_slice(text)
        .or_else(|_| serde_json::from_str(&without_huge_numbers(&String::from_utf8_lossy(text))))
}

fn without_huge_numbers(text: &str) -> String {
    let mut read = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(|next: char| next == '"' || next == '-' || next.is_ascii_digit()) {
        read.push_str(&rest[..at]);
        rest = &rest[at..];
        let length = match rest.strip_prefix('"') {
            Some(inside) => length_of_text(inside) + 1,
            None => rest.find(|next| !"+-.eE0123456789".contains(next)).unwrap_or(rest.len()),
        };
        let (token, behind) = rest.split_at(length);
        let is_huge = token.parse::<f64>().is_ok_and(f64::is_infinite);
        read.push_str(if is_huge { "null" } else { token });
        rest = behind;
    }
    read + rest
}

/// How long a text is, with the quotation mark at its end.
fn length_of_text(text: &str) -> usize {
    let mut is_escaped = false;
    for (at, next) in text.char_indices() {
        match next {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}
