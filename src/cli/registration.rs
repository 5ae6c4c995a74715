//! `coucou registration`: the file that the homeserver and coucou share, and the letter that goes with it.

mod document;
mod letter;

use std::{
    fs::OpenOptions,
    io::{self, Write},
    net::IpAddr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use ruma::{OwnedServerName, OwnedUserId, ServerName, UserId};
use url::Url;

use crate::config::{Http, Partial, Sources};
use document::Document;

/// The registration's own user. Synapse fails on `/sync` for it, so that it cannot be the bot.
const SENDER_LOCALPART: &str = "_coucou_as";

/// Arguments of `coucou registration`; what is not given comes from the settings.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The real user whose conversations shall be relayed, for example @owner:example.org.
    #[arg(long, value_name = "USER", value_parser = user_id)]
    owner: Option<OwnedUserId>,
    /// The URL at which the homeserver reaches coucou [default: where it listens].
    #[arg(long, value_parser = http_url)]
    url: Option<Url>,
    /// The id of the registration, unique on the homeserver [default: coucou].
    #[arg(long)]
    id: Option<String>,
    /// The bot that is invited to rooms [default: coucou].
    #[arg(long, value_name = "LOCALPART")]
    bot: Option<String>,
    /// The part of the homeserver's user ids after the colon [default: the owner's].
    #[arg(long, value_name = "NAME", value_parser = server_name)]
    server_name: Option<OwnedServerName>,
    /// Where the file is written.
    #[arg(long, value_name = "FILE", default_value = "registration.yaml")]
    output: PathBuf,
    /// Replace a file that is there. The homeserver then needs the new one, too.
    #[arg(long)]
    force: bool,
}

fn user_id(text: &str) -> Result<OwnedUserId, String> {
    let user_id = UserId::parse(text).ok().filter(|id| !id.localpart().is_empty());
    user_id.ok_or_else(|| "a whole user id is needed, for example @owner:example.org".to_owned())
}

fn http_url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    url.ok_or_else(|| "an http or https URL is needed, for example https://coucou.example.org".to_owned())
}

fn server_name(text: &str) -> Result<OwnedServerName, String> {
    ServerName::parse(text).map_err(|_| "a server name is needed, for example example.org".to_owned())
}

/// Writes the file and prints the letter.
pub(super) fn run(args: &Args, sources: &Sources) -> Result<()> {
    let partial = Partial::load(sources)?;
    let document = Document::new(&wishes(args, &partial)?, &mut rand::rng());
    write(&args.output, &document.to_yaml(), args.force)?;
    letter::print(&mut io::stdout(), &document, &args.output).context("the letter cannot be printed")
}

/// What the registration shall say.
#[derive(Debug)]
struct Wishes {
    id: String,
    url: String,
    bot: OwnedUserId,
    owner: Option<OwnedUserId>,
}

/// Arguments first, then settings, then defaults.
fn wishes(args: &Args, partial: &Partial) -> Result<Wishes> {
    let owner = args.owner.clone().or_else(|| partial.owner.clone());
    let bot = args.bot.as_ref().unwrap_or(&partial.bot);
    let whole_bot = bot.starts_with('@').then(|| user_id(bot).map_err(|error| anyhow!("--bot: {error}")));
    let whole_bot = whole_bot.transpose()?;
    let name = args.server_name.clone().or_else(|| partial.server_name.clone());
    let of = |user_id: &OwnedUserId| user_id.server_name().to_owned();
    let name = name.or_else(|| owner.as_ref().map(of)).or_else(|| whole_bot.as_ref().map(of));
    let Some(name) = name else {
        bail!(
            "the homeserver's name is not known: add --owner @owner:example.org or --server-name example.org, \
             or set homeserver.server_name (COUCOU_HOMESERVER_SERVER_NAME=example.org)"
        );
    };
    let bot = match whole_bot {
        Some(bot) => bot,
        None => user_id(&format!("@{bot}:{name}"))
            .ok()
            .filter(|id| id.server_name() == name && id.validate_strict().is_ok())
            .ok_or_else(|| {
                anyhow!("--bot {bot} is no localpart: a word of small letters, digits and ._=-/")
            })?,
    };
    ensure!(
        bot.localpart() != SENDER_LOCALPART,
        "--bot cannot be {SENDER_LOCALPART}: that is the registration's own user, for which Synapse's /sync fails"
    );
    for user_id in owner.iter().chain([&bot]) {
        ensure!(
            user_id.server_name() == name,
            "{user_id} is not of the homeserver {name}: an application service acts for users of its own \
             homeserver only"
        );
    }
    ensure!(owner.as_ref() != Some(&bot), "the owner and the bot are both {bot}: they must be two users");
    let id = args.id.clone().or_else(|| partial.id.clone()).unwrap_or_else(|| "coucou".to_owned());
    let word = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    ensure!(!id.is_empty() && id.bytes().all(word), "--id {id:?} must be a word of letters, digits and ._-");
    let url = args.url.as_ref().map_or_else(|| listening_url(partial.http), ToString::to_string);
    Ok(Wishes { id, url: url.trim_end_matches('/').to_owned(), bot, owner })
}

/// Where coucou can be reached on its own machine.
fn listening_url(http: Http) -> String {
    let host = match http.host {
        IpAddr::V4(host) if host.is_unspecified() => "127.0.0.1".to_owned(),
        IpAddr::V6(host) if host.is_unspecified() => "[::1]".to_owned(),
        IpAddr::V4(host) => host.to_string(),
        IpAddr::V6(host) => format!("[{host}]"),
    };
    format!("http://{host}:{}", http.port)
}

/// Writes the file, readable by us alone, and over another one only with `force`.
fn write(path: &Path, text: &str, force: bool) -> Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).mode(0o600);
    if force {
        // A fresh file, so that the mode holds and nobody reads half of it.
        let mut name = path.as_os_str().to_owned();
        name.push(".new");
        let fresh = PathBuf::from(name);
        let _ = std::fs::remove_file(&fresh);
        let written = options.create_new(true).open(&fresh).and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&fresh, path)
        });
        return written.with_context(|| format!("{} cannot be written", path.display()));
    }
    match options.create_new(true).open(path) {
        Ok(mut file) => file
            .write_all(text.as_bytes())
            .and_then(|()| file.sync_all())
            .with_context(|| format!("{} cannot be written", path.display())),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => bail!(
            "{} is there already: name another file with --output, or replace it with --force (the homeserver \
             then needs the new one, too)",
            path.display()
        ),
        Err(error) => Err(error).with_context(|| format!("{} cannot be written", path.display())),
    }
}

#[cfg(test)]
mod tests;
