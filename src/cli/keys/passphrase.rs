//! Where the passphrase of a key file comes from: never from the command line, which other users of the
//! machine can see.

use std::{
    fs,
    io::{self, IsTerminal, Read},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use secrecy::{ExposeSecret, SecretString};

use crate::config::Environment;

/// The variable that holds it.
const VARIABLE: &str = "COUCOU_KEYS_PASSPHRASE";

/// The fewest characters for a new file. Whoever has the file can try passphrases as fast as their machine does.
const LEAST: usize = 12;

/// The most bytes that are read.
const MOST: u64 = 64 << 10;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A file with the passphrase, `-` for stdin [default: `COUCOU_KEYS_PASSPHRASE`, else stdin].
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

/// Reads the passphrase; the end of its line does not belong to it.
pub(super) fn read(args: &Args, environment: &Environment) -> Result<SecretString> {
    let text = match &args.passphrase_file {
        Some(path) if path != Path::new("-") => {
            let file = fs::File::open(path).with_context(|| format!("{} cannot be read", path.display()))?;
            bounded(file).with_context(|| format!("{} cannot be read", path.display()))?
        }
        Some(_) => bounded(io::stdin()).context("the passphrase cannot be read from stdin")?,
        None => match environment.get(VARIABLE) {
            Some(passphrase) => passphrase.to_owned(),
            None if io::stdin().is_terminal() => bail!(
                "a passphrase is needed: set {VARIABLE}, name a file with --passphrase-file, or pipe it in"
            ),
            None => bounded(io::stdin()).context("the passphrase cannot be read from stdin")?,
        },
    };
    let line = text.strip_suffix('\n').unwrap_or(&text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    if line.is_empty() {
        bail!("the passphrase is empty: set {VARIABLE}, name a file with --passphrase-file, or pipe it in");
    }
    Ok(SecretString::from(line))
}

fn bounded(from: impl Read) -> io::Result<String> {
    let mut text = String::new();
    from.take(MOST).read_to_string(&mut text)?;
    Ok(text)
}

/// Refuses what is quickly guessed.
pub(super) fn check_strength(passphrase: &SecretString) -> Result<()> {
    if passphrase.expose_secret().chars().count() < LEAST {
        bail!(
            "the passphrase is too short: {LEAST} characters at least, for example `openssl rand -base64 24`"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_goes_before_the_environment() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("passphrase");
        let environment = || Environment::from_iter([(VARIABLE.to_owned(), "of the environment".to_owned())]);
        let read = |file: Option<&Path>| {
            let args = Args { passphrase_file: file.map(Path::to_owned) };
            read(&args, &environment()).map(|secret| secret.expose_secret().to_owned())
        };
        assert_eq!(read(None).unwrap(), "of the environment");
        fs::write(&path, " of the file \r\n").unwrap();
        assert_eq!(read(Some(&path)).unwrap(), " of the file ");
        fs::write(&path, "\n").unwrap();
        assert!(read(Some(&path)).unwrap_err().to_string().contains("empty"));
        assert!(read(Some(&folder.path().join("missing"))).is_err());
    }

    #[test]
    fn a_short_passphrase_is_refused_for_a_new_file() {
        assert!(check_strength(&SecretString::from("hunter2")).is_err());
        check_strength(&SecretString::from("twelve chars")).unwrap();
    }
}
