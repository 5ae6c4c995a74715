/// Which of a message's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MediaPart {
    /// The file itself.
    File,
    /// The smaller picture of it.
    Thumbnail,
}

impl MediaPart {
    /// The name in signatures and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Thumbnail => "thumbnail",
        }
    }
}
