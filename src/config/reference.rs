//! The page of the documentation that lists all settings, made from the settings themselves.

use std::fmt::Write;

use super::settings::{SETTINGS, Setting};

/// The whole page.
#[must_use]
pub fn reference() -> String {
    let mut page = include_str!("reference.md").to_owned();
    let mut section = "";
    for setting in SETTINGS {
        let of = group(setting.path);
        if of != section {
            section = of;
            // Writing to a string does not fail.
            let _ = write!(page, "\n## {section}\n\n");
        }
        let _ = writeln!(page, "{}", entry(setting));
    }
    page
}

/// What a setting stands under: the first part of its path.
fn group(path: &'static str) -> &'static str {
    let first = path.split(['.', '[']).next().unwrap_or(path);
    if first.starts_with("owner") { "owner" } else { first }
}

fn entry(setting: &Setting) -> String {
    let mark = if setting.secret { " 🔑" } else { "" };
    let names: Vec<String> = setting
        .env
        .into_iter()
        .chain(setting.aliases.iter().copied())
        .map(|name| format!("`{name}`"))
        .collect();
    let names = if names.is_empty() { "the file alone".to_owned() } else { names.join(", ") };
    format!(
        "- **`{}`**{mark}: {}\n  - default: {}\n  - environment: {names}\n  - example: `{}`",
        setting.path,
        plain(setting.meaning),
        plain(setting.default),
        setting.example,
    )
}

/// Text whose stars are meant as they are.
fn plain(text: &str) -> String {
    text.replace('*', "\\*")
}
