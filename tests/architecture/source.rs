//! Just enough of Rust's grammar to find paths and string literals, and to pass over comments.

/// A piece of a source file.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Literal(String),
    Sign(char),
    /// `::`
    Path,
}

/// A source file in pieces, each with its line.
pub(crate) struct Source(Vec<(Token, usize)>);

/// A path that leads through the crate's root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Import {
    /// The first module below the root.
    pub(crate) target: String,
    /// The line it is on.
    pub(crate) line: usize,
}

impl Source {
    /// Takes a file apart.
    pub(crate) fn read(text: &str) -> Self {
        let mut reader = Reader { rest: text, line: 1, tokens: Vec::new() };
        while reader.step() {}
        Self(reader.tokens)
    }

    /// Every string literal, with its line.
    pub(crate) fn literals(&self) -> Vec<(String, usize)> {
        let literal = |(token, line): &(Token, usize)| match token {
            Token::Literal(text) => Some((text.clone(), *line)),
            _ => None,
        };
        self.0.iter().filter_map(literal).collect()
    }

    /// Every path through the crate's root, in a file whose module lies `depth` below it.
    pub(crate) fn imports(&self, depth: usize) -> Vec<Import> {
        let mut found = Vec::new();
        // One entry for each open brace: whether it opened a module.
        let mut braces = Vec::new();
        for (index, (token, _)) in self.0.iter().enumerate() {
            match token {
                Token::Sign('{') => braces.push(index >= 2 && self.is_word(index - 2, "mod")),
                Token::Sign('}') => {
                    braces.pop();
                }
                Token::Word(word) if self.begins_path(index) => {
                    let below = depth + braces.iter().filter(|module| **module).count();
                    if let Some(after) = self.root(index, word, below) {
                        self.targets(after, &mut found);
                    }
                }
                _ => {}
            }
        }
        found
    }

    /// Where a path goes on after the crate's root, if it leads there; `below` is the depth of the place.
    fn root(&self, index: usize, word: &str, below: usize) -> Option<usize> {
        match word {
            "crate" | "coucou" => Some(index + 1),
            "super" => {
                let mut after = index + 1;
                let mut supers = 1;
                while self.token(after) == Some(&Token::Path) && self.is_word(after + 1, "super") {
                    supers += 1;
                    after += 2;
                }
                (supers == below).then_some(after)
            }
            _ => None,
        }
    }

    /// Reads `::name` or `::{name…, name…}` at `index`.
    fn targets(&self, index: usize, found: &mut Vec<Import>) {
        if self.token(index) != Some(&Token::Path) {
            return;
        }
        match self.token(index + 1) {
            Some(Token::Word(_)) => self.target(index + 1, found),
            Some(Token::Sign('{')) => {
                let mut depth = 0;
                for at in index + 1..self.0.len() {
                    match self.token(at) {
                        Some(Token::Sign('{')) => depth += 1,
                        Some(Token::Sign('}')) => depth -= 1,
                        _ => {}
                    }
                    let begins = matches!(self.token(at), Some(Token::Sign('{' | ',')));
                    if depth == 1 && begins {
                        self.target(at + 1, found);
                    }
                    if depth == 0 {
                        return;
                    }
                }
            }
            _ => {}
        }
    }

    fn target(&self, index: usize, found: &mut Vec<Import>) {
        if let Some((Token::Word(name), line)) = self.0.get(index) {
            found.push(Import { target: name.clone(), line: *line });
        }
    }

    fn begins_path(&self, index: usize) -> bool {
        index == 0 || self.token(index - 1) != Some(&Token::Path)
    }

    fn token(&self, index: usize) -> Option<&Token> {
        self.0.get(index).map(|(token, _)| token)
    }

    fn is_word(&self, index: usize, word: &str) -> bool {
        matches!(self.token(index), Some(Token::Word(found)) if found == word)
    }
}

struct Reader<'a> {
    rest: &'a str,
    line: usize,
    tokens: Vec<(Token, usize)>,
}

impl Reader<'_> {
    /// Reads one piece; `false` at the end.
    fn step(&mut self) -> bool {
        let Some(first) = self.rest.chars().next() else { return false };
        if first.is_whitespace() {
            self.take(first.len_utf8());
        } else if self.rest.starts_with("//") {
            self.take(self.rest.find('\n').unwrap_or(self.rest.len()));
        } else if self.rest.starts_with("/*") {
            self.comment();
        } else if let Some((prefix, hashes)) = self.raw_string() {
            let close = format!("\"{}", "#".repeat(hashes));
            self.take(prefix);
            let end = self.rest.find(&close).unwrap_or(self.rest.len());
            self.push(Token::Literal(self.rest[..end].to_owned()));
            self.take((end + close.len()).min(self.rest.len()));
        } else if self.rest.starts_with('"') {
            self.string();
        } else if first == '\'' {
            self.quote();
        } else if first.is_alphanumeric() || first == '_' {
            let end = self.rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(self.rest.len());
            self.push(Token::Word(self.rest[..end].to_owned()));
            self.take(end);
        } else if self.rest.starts_with("::") {
            self.push(Token::Path);
            self.take(2);
        } else {
            self.push(Token::Sign(first));
            self.take(first.len_utf8());
        }
        true
    }

    /// The length of `r#"` and the count of its hashes, when a raw string begins here.
    fn raw_string(&self) -> Option<(usize, usize)> {
        let after = ["br", "cr", "r"].iter().find_map(|prefix| self.rest.strip_prefix(prefix))?;
        let hashes = after.len() - after.trim_start_matches('#').len();
        let prefix = self.rest.len() - after.len() + hashes + 1;
        after[hashes..].starts_with('"').then_some((prefix, hashes))
    }

    /// A string; a backslash before a line's end joins the lines, as in Rust.
    fn string(&mut self) {
        let mut text = String::new();
        let mut characters = self.rest.char_indices().skip(1).peekable();
        let mut end = self.rest.len();
        while let Some((at, character)) = characters.next() {
            match character {
                '"' => {
                    end = at + 1;
                    break;
                }
                '\\' => {
                    let escaped = characters.next().map(|(_, escaped)| escaped);
                    if escaped == Some('\n') {
                        while characters.next_if(|(_, next)| next.is_whitespace()).is_some() {}
                    } else if escaped == Some('n') {
                        text.push('\n');
                    }
                }
                _ => text.push(character),
            }
        }
        self.push(Token::Literal(text));
        self.take(end);
    }

    /// A character literal, or a lifetime.
    fn quote(&mut self) {
        let mut characters = self.rest.char_indices().skip(1);
        let length = match (characters.next(), characters.next()) {
            (Some((_, '\\')), Some((at, _))) => {
                let from = at + 1;
                self.rest[from..].find('\'').map_or(self.rest.len(), |close| from + close + 1)
            }
            (Some(_), Some((at, '\''))) => at + 1,
            _ => 1,
        };
        self.take(length);
    }

    fn comment(&mut self) {
        let (mut depth, mut at) = (0, 0);
        while at < self.rest.len() {
            let here = &self.rest.as_bytes()[at..];
            if here.starts_with(b"/*") {
                depth += 1;
                at += 2;
            } else if here.starts_with(b"*/") {
                depth -= 1;
                at += 2;
                if depth == 0 {
                    break;
                }
            } else {
                at += 1;
            }
        }
        self.take(at.min(self.rest.len()));
    }

    fn push(&mut self, token: Token) {
        self.tokens.push((token, self.line));
    }

    fn take(&mut self, length: usize) {
        self.line += self.rest[..length].matches('\n').count();
        self.rest = &self.rest[length..];
    }
}
