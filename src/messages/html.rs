//! HTML as clients and bridges write it into messages, read just as far as something is said by its tags.
//!
//! Nothing here makes a text fit to be shown. What is no HTML is text: no input fails, and none is read twice, so
//! that reading costs no more than the length of the text.

use std::{borrow::Cow, ops::Range};

/// A piece of HTML.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Piece<'a> {
    /// Text between tags, as it is written: with its entities.
    Text(&'a str),
    /// A tag that opens an element, or is one alone.
    Open(Tag<'a>),
    /// A tag that closes an element of that name.
    Close(&'a str),
}

/// A tag that opens an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tag<'a> {
    name: &'a str,
    attributes: &'a str,
}

impl<'a> Tag<'a> {
    /// Returns whether it has that name, which is in lower case.
    pub(super) fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name)
    }

    /// Returns the value of an attribute, without entities; an empty one when the attribute has none.
    pub(super) fn attribute(&self, name: &str) -> Option<Cow<'a, str>> {
        let mut rest = self.attributes;
        loop {
            rest = rest.trim_start_matches(|char: char| char.is_ascii_whitespace() || char == '/');
            if rest.is_empty() {
                return None;
            }
            let end = rest
                .char_indices()
                .skip(1)
                .find(|(_, char)| char.is_ascii_whitespace() || matches!(char, '=' | '/'));
            let (found, after) = rest.split_at(end.map_or(rest.len(), |(at, _)| at));
            let (value, after) = attribute_value(after);
            if found.eq_ignore_ascii_case(name) {
                return Some(unescape(value));
            }
            rest = after;
        }
    }
}

/// Splits off the value that follows an attribute's name.
fn attribute_value(text: &str) -> (&str, &str) {
    let Some(value) = text.trim_ascii_start().strip_prefix('=') else { return ("", text) };
    let value = value.trim_ascii_start();
    let quote = value.chars().next().filter(|char| matches!(char, '"' | '\''));
    match quote {
        Some(quote) => {
            let value = &value[1..];
            value.split_once(quote).unwrap_or((value, ""))
        }
        None => value.split_at(value.find(|char: char| char.is_ascii_whitespace()).unwrap_or(value.len())),
    }
}

/// Walks through HTML, piece by piece.
#[derive(Clone, Debug)]
pub(super) struct Pieces<'a> {
    html: &'a str,
    at: usize,
}

impl<'a> Pieces<'a> {
    pub(super) fn of(html: &'a str) -> Self {
        Self { html, at: 0 }
    }

    /// Reads what begins at the front of `rest`, with its length.
    fn first(rest: &'a str) -> (usize, Option<Piece<'a>>) {
        let text = |length: usize| (length, Some(Piece::Text(&rest[..length])));
        let Some(inner) = rest.strip_prefix('<') else { return text(rest.find('<').unwrap_or(rest.len())) };
        if let Some(comment) = inner.strip_prefix("!--") {
            return (comment.find("-->").map_or(rest.len(), |end| 4 + end + 3), None);
        }
        if inner.starts_with(['!', '?']) {
            return (inner.find('>').map_or(rest.len(), |end| end + 2), None);
        }
        let (is_closing, inner) = inner.strip_prefix('/').map_or((false, inner), |inner| (true, inner));
        if !inner.starts_with(|char: char| char.is_ascii_alphabetic()) {
            // A `<` that begins no tag is text.
            return text(rest[1..].find('<').map_or(rest.len(), |end| 1 + end));
        }
        let is_name = |char: char| char.is_ascii_alphanumeric() || char == '-';
        let (name, after) = inner.split_at(inner.find(|char| !is_name(char)).unwrap_or(inner.len()));
        // A tag that does not end takes all that follows, as in a browser.
        let Some(end) = end_of_tag(after) else { return (rest.len(), None) };
        let length = rest.len() - after.len() + end + 1;
        let tag = Tag { name, attributes: &after[..end] };
        (length, Some(if is_closing { Piece::Close(name) } else { Piece::Open(tag) }))
    }
}

/// Returns where the `>` of a tag is: the first that stands in no attribute's value.
fn end_of_tag(after_name: &str) -> Option<usize> {
    let mut quote = None;
    for (at, byte) in after_name.bytes().enumerate() {
        match (byte, quote) {
            (b'>', None) => return Some(at),
            (b'"' | b'\'', None) => quote = Some(byte),
            (byte, Some(open)) if byte == open => quote = None,
            _ => {}
        }
    }
    None
}

impl<'a> Iterator for Pieces<'a> {
    type Item = (Range<usize>, Piece<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let start = self.at;
            let rest = self.html.get(start..).filter(|rest| !rest.is_empty())?;
            let (length, piece) = Self::first(rest);
            self.at += length;
            if let Some(piece) = piece {
                return Some((start..self.at, piece));
            }
        }
    }
}

/// Returns a text without entities. Those that hardly anybody writes stay as they are.
pub(super) fn unescape(text: &str) -> Cow<'_, str> {
    /// The longest that is looked for: `&#x10FFFF;`.
    const MAX_ENTITY: usize = 10;
    if !text.contains('&') {
        return Cow::Borrowed(text);
    }
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        let (before, from) = rest.split_at(at);
        plain.push_str(before);
        let end = from.bytes().take(MAX_ENTITY).position(|byte| byte == b';');
        let found = end.and_then(|end| Some((entity(&from[1..end])?, end)));
        let (char, length) = found.map_or(('&', 1), |(char, end)| (char, end + 1));
        plain.push(char);
        rest = &from[length..];
    }
    plain.push_str(rest);
    Cow::Owned(plain)
}

fn entity(name: &str) -> Option<char> {
    match name {
        "amp" => Some('&'),
        "lt" => Some('<'),
        "gt" => Some('>'),
        "quot" => Some('"'),
        "apos" => Some('\''),
        "nbsp" => Some('\u{a0}'),
        _ => {
            let number = name.strip_prefix('#')?;
            let code = match number.strip_prefix(['x', 'X']) {
                Some(hex) => u32::from_str_radix(hex, 16).ok()?,
                None => number.parse().ok()?,
            };
            char::from_u32(code)
        }
    }
}

/// Returns what there is to read in HTML, with a line's end for each `<br>` and after each paragraph.
pub(super) fn text(html: &str) -> String {
    let mut text = String::new();
    for (_, piece) in Pieces::of(html) {
        match piece {
            Piece::Text(piece) => text.push_str(&unescape(piece)),
            Piece::Open(tag) if tag.is("br") => text.push('\n'),
            Piece::Close(name)
                if ["p", "div", "blockquote"].iter().any(|block| name.eq_ignore_ascii_case(block)) =>
            {
                text.push('\n');
            }
            Piece::Open(_) | Piece::Close(_) => {}
        }
    }
    text.trim().to_owned()
}

/// Splits HTML that begins with an element of that name into what is in the element and what follows it. Returns
/// `None` when it begins with something else, or the element does not end.
pub(super) fn split_first<'a>(html: &'a str, name: &str) -> Option<(&'a str, &'a str)> {
    let html = html.trim_start();
    let mut pieces = Pieces::of(html);
    let (opening, first) = pieces.next()?;
    if !matches!(first, Piece::Open(tag) if tag.is(name)) || opening.start != 0 {
        return None;
    }
    let mut depth = 1_usize;
    for (range, piece) in pieces {
        match piece {
            Piece::Open(tag) if tag.is(name) => depth += 1,
            Piece::Close(closed) if closed.eq_ignore_ascii_case(name) => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some((&html[opening.end..range.start], &html[range.end..]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_told_from_text() {
        let html = "<a href=\"x?>y\" data-x DIR='rtl'>a > b</a><!-- <b> --> < c & <3 <!doctype html>";
        let pieces = Pieces::of(html).map(|(_, piece)| piece).collect::<Vec<_>>();
        let [Piece::Open(link), Piece::Text("a > b"), Piece::Close("a"), rest @ ..] = &pieces[..] else {
            panic!("{pieces:?}")
        };
        assert_eq!(rest, [" ", "< c & ", "<3 "].map(Piece::Text));
        assert!(link.is("a") && !link.is("b"));
        assert_eq!(link.attribute("href").as_deref(), Some("x?>y"));
        assert_eq!(link.attribute("data-x").as_deref(), Some(""));
        assert_eq!(link.attribute("dir").as_deref(), Some("rtl"));
        assert_eq!(link.attribute("title"), None);
        for (odd, expected) in
            [("é<é", "é<é"), ("a<", "a<"), ("a</", "a</"), ("&", "&"), ("a<b x", "a"), ("a<!b", "a")]
        {
            assert_eq!(text(odd), expected);
        }
    }

    #[test]
    fn hostile_html_is_read_in_one_go() {
        for unit in ["<a ", "<a \"", "<", "<!--", "<!", "</a", "<a>", "&", "<blockquote>"] {
            let html = unit.repeat(65_536 / unit.len());
            let started = std::time::Instant::now();
            let _ = (text(&html), split_first(&html, "a"), split_first(&html, "blockquote"));
            assert!(started.elapsed().as_secs() < 5, "{unit}");
        }
    }

    #[test]
    fn entities_are_read() {
        assert_eq!(unescape("a &amp; b &lt;&gt;&quot;&#39;&#x27;&apos;"), "a & b <>\"'''");
        for odd in ["&", "&;", "&nope;", "&#;", "&#x110000;", "&é;", "&amp"] {
            assert_eq!(unescape(odd), odd);
        }
    }

    #[test]
    fn what_is_there_to_read_is_read() {
        assert_eq!(text("<p>a<br/>b</p><i>c</i> &lt; <img src='x'>d"), "a\nb\nc < d");
        assert_eq!(text(""), "");
    }

    #[test]
    fn an_element_at_the_front_is_split_off() {
        let html = " <blockquote>a<blockquote>b</blockquote></blockquote>c";
        assert_eq!(split_first(html, "blockquote"), Some(("a<blockquote>b</blockquote>", "c")));
        assert_eq!(split_first("<mx-reply >q</mx-reply>", "mx-reply"), Some(("q", "")));
        for other in ["a<b>c</b>", "<b>c", "", "<p>c</p>", "<!-- --><b>c</b>"] {
            assert_eq!(split_first(other, "b"), None, "{other}");
        }
    }
}
