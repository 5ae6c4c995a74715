//! `coucou keys`: room keys to a file, from a file, and what is known of them.
//!
//! Files are in the [standard encrypted format](https://spec.matrix.org/latest/client-server-api/#key-exports)
//! that Element and others read and write.

mod passphrase;
mod status;

use std::{
    fs::{self, File, OpenOptions},
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use ruma::{OwnedRoomId, OwnedUserId};

use crate::{
    app::keys as app,
    clock::{Clock, SystemClock},
    config::{Config, Environment},
};

/// The largest file that is imported: about 400,000 keys.
const MOST_BYTES: u64 = 512 << 20;

/// Arguments of `coucou keys`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Writes room keys to a file, encrypted with a passphrase.
    Export(Export),
    /// Takes room keys in from a file, while `coucou serve` runs or not.
    Import(Import),
    /// Tells how many room keys there are, what events wait for, and what would fix it.
    Status(status::Args),
}

#[derive(Debug, clap::Args)]
struct Export {
    /// The file to write. Only its owner can read it.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Replace the file if there is one.
    #[arg(long)]
    force: bool,
    /// Only the keys of this room.
    #[arg(long, value_name = "ID")]
    room: Option<OwnedRoomId>,
    /// Only the keys of this account [default: those of all].
    #[arg(long, value_name = "USER")]
    account: Option<OwnedUserId>,
    #[command(flatten)]
    passphrase: passphrase::Args,
}

#[derive(Debug, clap::Args)]
struct Import {
    /// The file to read.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The account for keys that none has yet [default: the bot].
    #[arg(long, value_name = "USER")]
    account: Option<OwnedUserId>,
    #[command(flatten)]
    passphrase: passphrase::Args,
}

/// Runs the command.
pub(super) async fn run(args: Args, config: Config, environment: Environment) -> Result<()> {
    match args.command {
        Command::Export(args) => export(args, &config, &environment).await,
        Command::Import(args) => import(args, &config, &environment).await,
        Command::Status(args) => status::run(args, &config).await,
    }
}

async fn export(args: Export, config: &Config, environment: &Environment) -> Result<()> {
    if !args.force && fs::symlink_metadata(&args.out).is_ok() {
        bail!("{} is there already: name another file, or replace it with --force", args.out.display());
    }
    let passphrase = passphrase::read(&args.passphrase, environment)?;
    passphrase::check_strength(&passphrase)?;
    let progress = Progress::new("read");
    let tell = |done, total| progress.tell(done, total);
    let (text, count) = app::export(config, args.account, args.room, passphrase, &tell)
        .await
        .context("the room keys cannot be exported")?;
    write_file(&args.out, args.force, &text)
        .with_context(|| format!("{} cannot be written", args.out.display()))?;
    writeln!(io::stdout(), "exported {count} room keys to {}", args.out.display())?;
    Ok(())
}

async fn import(args: Import, config: &Config, environment: &Environment) -> Result<()> {
    let name = args.file.display().to_string();
    let size = fs::metadata(&args.file).with_context(|| format!("{name} cannot be read"))?.len();
    if size > MOST_BYTES {
        bail!("{name} is larger than any key export that coucou imports ({} MiB)", MOST_BYTES >> 20);
    }
    let bytes = fs::read(&args.file).with_context(|| format!("{name} cannot be read"))?;
    let Ok(text) = String::from_utf8(bytes) else {
        return Err(app::KeysError::NoExport).with_context(|| format!("{name} cannot be imported"));
    };
    let passphrase = passphrase::read(&args.passphrase, environment)?;
    let keys = app::decrypt(text, passphrase).await.with_context(|| format!("{name} cannot be imported"))?;
    let total = keys.len();
    let progress = Progress::new("imported");
    let tell = |done, total| progress.tell(done, total);
    let counts = app::import(config, args.account, keys, &tell)
        .await
        .with_context(|| format!("{name} cannot be imported"))?;
    let mut out = io::stdout();
    writeln!(out, "{total} room keys in {name}:")?;
    writeln!(out, "  {:>7} new", counts.new)?;
    writeln!(out, "  {:>7} better than the one that was here", counts.better)?;
    writeln!(out, "  {:>7} known", counts.known)?;
    writeln!(out, "  {:>7} of rooms that are not relayed, which are not kept", counts.unwanted)?;
    if counts.bad > 0 {
        writeln!(out, "  {:>7} that contradict themselves or the one that is here", counts.bad)?;
    }
    Ok(())
}

/// Writes a file that only its owner can read; whole, or not at all.
fn write_file(path: &Path, force: bool, text: &str) -> io::Result<()> {
    if !force {
        let written = create(path).and_then(|file| fill(file, text));
        if matches!(&written, Err(error) if error.kind() != io::ErrorKind::AlreadyExists) {
            let _ = fs::remove_file(path);
        }
        return written;
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.part", std::process::id()));
    let part = path.with_file_name(name);
    let written = create(&part).and_then(|file| fill(file, text)).and_then(|()| fs::rename(&part, path));
    if written.is_err() {
        let _ = fs::remove_file(&part);
    }
    written
}

fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

fn fill(mut file: File, text: &str) -> io::Result<()> {
    file.write_all(text.as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()
}

/// How far long work is, on stderr: a line that is rewritten on a terminal, else a line now and then.
struct Progress {
    verb: &'static str,
    told_at: AtomicU64,
}

impl Progress {
    fn new(verb: &'static str) -> Self {
        let now = u64::try_from(SystemClock.now().0).unwrap_or(0);
        Self { verb, told_at: AtomicU64::new(now) }
    }

    fn tell(&self, done: u64, total: Option<u64>) {
        let now = u64::try_from(SystemClock.now().0).unwrap_or(0);
        let terminal = io::stderr().is_terminal();
        let pause = if terminal { 200 } else { 5_000 };
        if now.saturating_sub(self.told_at.load(Ordering::Relaxed)) < pause {
            return;
        }
        self.told_at.store(now, Ordering::Relaxed);
        let of = total.map(|total| format!(" of {total}")).unwrap_or_default();
        let (start, end) = if terminal { ("\r", "") } else { ("", "\n") };
        // Progress that cannot be told is no reason to stop.
        let _ = write!(io::stderr(), "{start}{} {done}{of} room keys{end}", self.verb);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if io::stderr().is_terminal() {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_written_once_and_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.txt");
        write_file(&path, false, "one").unwrap();
        assert!(write_file(&path, false, "two").is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "one\n", "what was there stays");
        write_file(&path, true, "three").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "three\n");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left");
        assert!(write_file(&folder.path().join("no/keys.txt"), true, "x").is_err());
    }
}
