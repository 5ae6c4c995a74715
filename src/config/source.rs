//! Where settings come from, in the order in which they count: `COUCOU_…`, aliases, the file.

use std::{
    collections::BTreeMap,
    env, fmt, fs, io,
    path::{Path, PathBuf},
};

use super::{
    error::{ConfigError, did_you_mean},
    file::{self, Node, Value},
    settings::{SETTINGS, Setting, other},
};

/// The file that is read when none is named and it is there.
const DEFAULT_FILE: &str = "coucou.yaml";

/// Environment variables. One that is empty counts as not set.
#[derive(Clone, Default)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    /// Those of this process. What is not Unicode is left out.
    #[must_use]
    pub fn of_process() -> Self {
        env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect()
    }

    /// The value of a variable, unless it is empty.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.trim().is_empty())
    }

    /// The names of all variables.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

impl FromIterator<(String, String)> for Environment {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(variables: I) -> Self {
        Self(variables.into_iter().collect())
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Where settings come from.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The file, when one is named; else `coucou.yaml` if it is there.
    pub file: Option<PathBuf>,
    /// What relative paths are relative to; empty for the current folder.
    pub folder: PathBuf,
    /// The environment variables.
    pub environment: Environment,
}

impl Sources {
    /// The environment of this process, the current folder and, if named, `file`.
    #[must_use]
    pub fn of_process(file: Option<PathBuf>) -> Self {
        Self { file, folder: PathBuf::new(), environment: Environment::of_process() }
    }
}

/// A value as it was given, and by whom.
pub(super) struct Given {
    /// The value as text.
    pub(super) text: String,
    /// Who gave it: `COUCOU_HTTP_PORT`, or `coucou.yaml line 3`.
    pub(super) origin: String,
}

impl Given {
    /// The error that this value is not what it must be.
    pub(super) fn invalid(&self, setting: &'static Setting, must: &str) -> ConfigError {
        let found = if setting.secret {
            format!("the value of {} is not", self.origin)
        } else {
            let shown: String = self.text.chars().take(80).collect();
            format!("{} has {shown:?}", self.origin)
        };
        ConfigError::Invalid { setting, must: must.to_owned(), found }
    }
}

/// Reads settings from all sources.
pub(super) struct Reader<'a> {
    pub(super) environment: &'a Environment,
    folder: &'a Path,
    path: String,
    tree: Node,
}

impl<'a> Reader<'a> {
    /// Reads the file, and refuses keys and variables that are no settings.
    pub(super) fn open(sources: &'a Sources) -> Result<Self, ConfigError> {
        let Sources { file, folder, environment } = sources;
        let named = file.as_deref().unwrap_or(Path::new(DEFAULT_FILE));
        let path = named.display().to_string();
        let wrong = |what| ConfigError::File { path: path.clone(), what };
        let tree = match fs::read_to_string(folder.join(named)) {
            Ok(text) => file::parse(&text).map_err(wrong)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound && file.is_none() => Node::default(),
            Err(error) => return Err(wrong(format!("cannot be read: {error}"))),
        };
        let reader = Self { environment, folder, path, tree };
        reader.check_keys(&reader.tree, "")?;
        reader.check_variables()?;
        Ok(reader)
    }

    /// A path as the settings mean it.
    pub(super) fn resolve(&self, path: impl AsRef<Path>) -> PathBuf {
        self.folder.join(path)
    }

    /// The value of a setting, if it is set anywhere.
    pub(super) fn given(&self, setting: &'static Setting) -> Result<Option<Given>, ConfigError> {
        if let Some(given) = self.in_environment(setting)? {
            return Ok(Some(given));
        }
        self.in_file(setting)
    }

    /// What the file says about a setting.
    pub(super) fn in_file(&self, setting: &'static Setting) -> Result<Option<Given>, ConfigError> {
        match self.node(setting) {
            Some(node) => self.text(node, setting),
            None => Ok(None),
        }
    }

    /// The value of a setting that `parse` understands.
    pub(super) fn parsed<T>(
        &self,
        setting: &'static Setting,
        must: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(given) = self.given(setting)? else { return Ok(None) };
        parse(&given.text).map(Some).ok_or_else(|| given.invalid(setting, must))
    }

    /// The values of a setting that is a list in the file, or has commas in the environment.
    pub(super) fn list(
        &self,
        setting: &'static Setting,
        separator: Option<char>,
    ) -> Result<Option<Vec<Given>>, ConfigError> {
        if let Some(given) = self.in_environment(setting)? {
            let texts: Vec<&str> = match separator {
                Some(separator) => given.text.split(separator).map(str::trim).collect(),
                None => vec![&given.text],
            };
            let one = |text: &str| Given { text: text.to_owned(), origin: given.origin.clone() };
            return Ok(Some(texts.into_iter().filter(|text| !text.is_empty()).map(one).collect()));
        }
        let Some(node) = self.node(setting) else { return Ok(None) };
        let Value::List(entries) = &node.value else {
            return Ok(self.text(node, setting)?.map(|given| vec![given]));
        };
        let texts = entries.iter().filter_map(|entry| self.text(entry, setting).transpose());
        texts.collect::<Result<_, _>>().map(Some)
    }

    /// What the environment says about a setting.
    pub(super) fn in_environment(&self, setting: &'static Setting) -> Result<Option<Given>, ConfigError> {
        let Some(env) = setting.env else { return Ok(None) };
        let value = self.environment.get(env);
        let file = setting.file_env().and_then(|name| Some((self.environment.get(&name)?, name)));
        match (value, file) {
            (Some(_), Some(_)) => Err(ConfigError::SetTwice { setting, env }),
            (None, Some((path, name))) => {
                let text = fs::read_to_string(self.resolve(path)).map_err(|error| ConfigError::Invalid {
                    setting,
                    must: "must be a file that can be read".to_owned(),
                    found: format!("{name} names {path}: {error}"),
                })?;
                let text = text.trim_end_matches(['\r', '\n']).to_owned();
                if text.trim().is_empty() {
                    let found = format!("{name} names {path}, which is empty");
                    return Err(ConfigError::Invalid {
                        setting,
                        must: "must not be empty".to_owned(),
                        found,
                    });
                }
                Ok(Some(Given { text, origin: name }))
            }
            (value, None) => {
                let names = std::iter::once(env).chain(setting.aliases.iter().copied());
                let first = match value {
                    Some(value) => Some((env, value)),
                    None => names.skip(1).find_map(|name| Some((name, self.environment.get(name)?))),
                };
                Ok(first.map(|(name, text)| Given { text: cleaned(text, setting), origin: name.to_owned() }))
            }
        }
    }

    /// A place in the file.
    pub(super) fn origin(&self, line: u64) -> String {
        format!("{} line {line}", self.path)
    }

    /// The node of a setting in the file.
    pub(super) fn node(&self, setting: &Setting) -> Option<&Node> {
        setting.path.split('.').try_fold(&self.tree, |node, key| node.get(key))
    }

    /// The entries of a list of mappings in the file: `webhooks`.
    pub(super) fn entries(&self, key: &str) -> &[Node] {
        match self.tree.get(key).map(|node| &node.value) {
            Some(Value::List(entries)) => entries,
            _ => &[],
        }
    }

    /// The value of a node that must be text, number or boolean; `None` for an empty one.
    pub(super) fn text(&self, node: &Node, setting: &'static Setting) -> Result<Option<Given>, ConfigError> {
        let wrong = |what| ConfigError::Invalid {
            setting,
            must: "must be a single value".to_owned(),
            found: format!("{} has {what}", self.origin(node.line)),
        };
        match &node.value {
            Value::Null => Ok(None),
            Value::Text(text) if text.trim().is_empty() => Ok(None),
            Value::Text(text) => {
                Ok(Some(Given { text: cleaned(text, setting), origin: self.origin(node.line) }))
            }
            Value::List(_) => Err(wrong("a list")),
            Value::Map(_) => Err(wrong("a mapping")),
        }
    }

    /// Refuses keys of the file that are no settings, and values where sections belong.
    fn check_keys(&self, node: &Node, above: &str) -> Result<(), ConfigError> {
        let map = match &node.value {
            Value::Map(map) => map,
            Value::Null => return Ok(()),
            Value::Text(_) | Value::List(_) => {
                let whole = above.trim_end_matches(['.', '[', ']']);
                let whole = if whole.is_empty() { "the file" } else { whole };
                let what = format!("line {}: {whole} must be a mapping of settings, key: value", node.line);
                return Err(ConfigError::File { path: self.path.clone(), what });
            }
        };
        for (key, node) in map {
            let path = format!("{above}{key}");
            let (section, list) = (format!("{path}."), format!("{path}[]."));
            if SETTINGS.iter().any(|setting| setting.path == path) {
                // An entry of a list of values can also be a mapping, where there are settings of it.
                if let Value::List(entries) = &node.value {
                    let mappings = entries.iter().filter(|entry| matches!(entry.value, Value::Map(_)));
                    let known = SETTINGS.iter().any(|setting| setting.path.starts_with(&list));
                    mappings.filter(|_| known).try_for_each(|entry| self.check_keys(entry, &list))?;
                }
                continue;
            }
            if SETTINGS.iter().any(|setting| setting.path.starts_with(&section)) {
                self.check_keys(node, &section)?;
            } else if SETTINGS.iter().any(|setting| setting.path.starts_with(&list)) {
                self.check_list(node, &path, &list)?;
            } else {
                let hint = did_you_mean(&path, SETTINGS.iter().map(|setting| setting.path));
                return Err(ConfigError::UnknownKey {
                    path: self.path.clone(),
                    line: node.line,
                    key: path,
                    hint,
                });
            }
        }
        Ok(())
    }

    fn check_list(&self, node: &Node, path: &str, above: &str) -> Result<(), ConfigError> {
        match &node.value {
            Value::List(entries) => entries.iter().try_for_each(|entry| self.check_keys(entry, above)),
            Value::Null => Ok(()),
            Value::Text(_) | Value::Map(_) => {
                let what = format!("line {}: {path} must be a list", node.line);
                Err(ConfigError::File { path: self.path.clone(), what })
            }
        }
    }

    /// Refuses variables that look like settings and are none.
    fn check_variables(&self) -> Result<(), ConfigError> {
        let known = |name: &str| {
            SETTINGS.iter().any(|setting| {
                setting.env == Some(name) || setting.file_env().is_some_and(|file| file == name)
            })
        };
        let unknown = |name: &&str| name.starts_with("COUCOU_") && !other::is_foreign(name) && !known(name);
        match self.environment.names().find(unknown) {
            Some(name) => Err(ConfigError::UnknownVariable {
                name: name.to_owned(),
                hint: did_you_mean(name, SETTINGS.iter().filter_map(|setting| setting.env)),
            }),
            None => Ok(()),
        }
    }
}

/// A value without the white space around it, which only secrets may mean.
fn cleaned(text: &str, setting: &Setting) -> String {
    if setting.secret { text.to_owned() } else { text.trim().to_owned() }
}
