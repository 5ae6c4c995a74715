/// Which of a message's files.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MediaPart {
    /// The file itself.
    File,
    /// The smaller picture of it.
    Thumbnail,
    /// Another one, by the name that its payload gives it: made by [`MediaPart::named`].
    Named(String),
}

impl MediaPart {
    /// Maximum number of bytes of a name.
    const MAX_LENGTH: usize = 64;

    /// Returns the part of that name; `None` when no part is called so.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let fits = (1..=Self::MAX_LENGTH).contains(&name.len());
        let is_allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'.';
        let is_taken = name == Self::File.as_str() || name == Self::Thumbnail.as_str();
        (fits && !is_taken && name.bytes().all(is_allowed)).then(|| Self::Named(name.to_owned()))
    }

    /// The name in signatures and logs.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::File => "file",
            Self::Thumbnail => "thumbnail",
            Self::Named(name) => name,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_no_other_parts_and_harmless() {
        for good in ["gallery.0", "gallery.12.thumbnail", "avatar", "file.3"] {
            assert_eq!(MediaPart::named(good).unwrap().as_str(), good);
        }
        for bad in ["", "file", "thumbnail", "a/b", "a\0b", "A", "é", &"x".repeat(65)] {
            assert_eq!(MediaPart::named(bad), None, "{bad}");
        }
    }
}
