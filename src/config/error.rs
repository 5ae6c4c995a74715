//! What can be wrong with the settings, each in one line.

use super::settings::Setting;

/// Why the settings cannot be used. Displays as one line that names the setting, its environment variable
/// and an example, and shows no secret.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A required setting is not set.
    #[error("{} is missing{because}: {}", .setting.path, remedy(.setting))]
    Missing {
        /// The setting.
        setting: &'static Setting,
        /// Why it is required, when that depends; begins with a space then.
        because: String,
    },
    /// A setting has a value that it cannot have.
    #[error("{} {must}, but {found}: {}", .setting.path, remedy(.setting))]
    Invalid {
        /// The setting.
        setting: &'static Setting,
        /// What it must be: `must be a number from 0 to 65535`.
        must: String,
        /// Where the value came from, and, if it may be shown, the value.
        found: String,
    },
    /// The file is not valid YAML, or cannot be read.
    #[error("{path}: {what}")]
    File {
        /// The file.
        path: String,
        /// What is wrong.
        what: String,
    },
    /// The file has a key that is no setting.
    #[error("{path} line {line}: there is no setting {key}{hint}")]
    UnknownKey {
        /// The file.
        path: String,
        /// The line, counted from 1.
        line: u64,
        /// The key with those above it: `http.prot`.
        key: String,
        /// A setting that was perhaps meant, or nothing.
        hint: String,
    },
    /// There is an environment variable that looks like ours but is no setting.
    #[error("{name} is set, but there is no such setting{hint}")]
    UnknownVariable {
        /// The variable.
        name: String,
        /// A variable that was perhaps meant, or nothing.
        hint: String,
    },
    /// A secret is given both by value and by file.
    #[error("{} is set twice, as {env} and as {env}_FILE: remove one of the two", .setting.path)]
    SetTwice {
        /// The setting.
        setting: &'static Setting,
        /// The variable that holds the value.
        env: &'static str,
    },
    /// Settings that are fine alone contradict each other; the text says which, and what to do.
    #[error("{0}")]
    Conflict(String),
}

/// How to set a setting.
fn remedy(setting: &Setting) -> String {
    let Setting { path, env, example, .. } = setting;
    match env {
        Some(env) => format!("set it in coucou.yaml or as {env}, for example {env}={example}"),
        None => format!("set it in coucou.yaml, for example {}: {example}", leaf(path)),
    }
}

/// The last part of a path.
fn leaf(path: &str) -> &str {
    path.rsplit_once('.').map_or(path, |(_, leaf)| leaf)
}

/// `; did you mean …?` for the candidate that is nearest to `wrong`, if any is near.
pub(super) fn did_you_mean<'a>(wrong: &str, candidates: impl Iterator<Item = &'a str>) -> String {
    candidates
        .map(|candidate| (distance(wrong, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= candidate.len() / 4 + 1)
        .min()
        .map(|(_, candidate)| format!("; did you mean {candidate}?"))
        .unwrap_or_default()
}

/// How many characters must be added, removed or replaced to get from one text to the other.
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (at, left) in from.chars().enumerate() {
        let mut next = vec![at + 1];
        for (pair, right) in row.windows(2).zip(&to) {
            let [diagonal, above] = pair else { continue };
            let before = next.last().copied().unwrap_or(at);
            next.push((diagonal + usize::from(left != *right)).min(above + 1).min(before + 1));
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_suggested_and_a_far_one_is_not() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        let names = ["http.port", "http.host", "owner"];
        assert_eq!(did_you_mean("http.prot", names.into_iter()), "; did you mean http.port?");
        assert_eq!(did_you_mean("something.else", names.into_iter()), "");
    }
}
