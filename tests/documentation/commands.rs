//! Every command of the README and the book that can run is run, as it stands there, beside a running coucou on a real
//! Synapse and a real PostgreSQL. Blocks that cannot run here say why, in a comment before them.

use std::{
    env, fs,
    os::unix::fs::symlink,
    process::Command,
    time::{Duration, Instant},
};

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use super::pages;
use crate::support::{
    coucou::Coucou,
    postgres::Database,
    process::Process,
    receiver::Receiver,
    synapse::{Bridge, Options, Synapse},
    until,
};

const BOT: &str = "@coucou:localhost";
const SOON: Duration = Duration::from_mins(1);

/// Languages of blocks that are run.
const SHELL: [&str; 5] = ["sh", "bash", "shell", "console", "zsh"];

/// How a block that is not run begins to say why.
const NOT_RUN: &str = "<!-- not run: ";

/// A block of code.
#[derive(Debug)]
struct Block {
    place: String,
    language: String,
    code: String,
    /// Why it is not run.
    reason: Option<String>,
}

/// The blocks of a page, with those in lists.
fn blocks(path: &str, page: &str) -> Vec<Block> {
    let (mut blocks, mut open): (Vec<Block>, Option<(Block, usize)>) = (Vec::new(), None);
    let mut before = "";
    for (at, line) in page.lines().enumerate() {
        let text = line.trim_start();
        match (&mut open, text.strip_prefix("```")) {
            (None, Some(language)) => {
                let reason = before.trim().strip_prefix(NOT_RUN).and_then(|rest| rest.strip_suffix(" -->"));
                let block = Block {
                    place: format!("{path}:{}", at + 1),
                    language: language.trim().to_owned(),
                    code: String::new(),
                    reason: reason.map(str::to_owned),
                };
                open = Some((block, line.len() - text.len()));
            }
            (Some(_), Some(_)) => blocks.extend(open.take().map(|(block, _)| block)),
            (Some((block, indent)), None) => {
                block.code.push_str(line.get(*indent..).unwrap_or_default());
                block.code.push('\n');
            }
            (None, None) => {}
        }
        before = line;
    }
    assert!(open.is_none(), "a block of {path} does not end");
    blocks
}

fn all_blocks() -> Vec<Block> {
    let pages = pages();
    pages.iter().flat_map(|(path, page)| blocks(&path.to_string_lossy(), page)).collect()
}

#[test]
fn what_is_not_run_says_why() {
    for block in all_blocks() {
        assert!(!block.language.is_empty(), "{}: of what language?", block.place);
        let is_command = SHELL.contains(&&*block.language) || block.language == "sql";
        if let Some(reason) = &block.reason {
            assert!(is_command && reason.len() > 10, "{}: {reason}", block.place);
        }
        // A command that is hidden in another kind of block is not run.
        let hidden = block.code.lines().any(|line| line.starts_with("coucou ") || line.starts_with("curl "));
        assert!(is_command || !hidden, "{} has commands", block.place);
    }
    for (path, page) in pages() {
        let markers = page.matches(NOT_RUN.trim_end()).count();
        let blocks = blocks(&path.to_string_lossy(), &page);
        let marked = blocks.iter().filter(|block| block.reason.is_some()).count();
        assert_eq!(markers, marked, "{}: a marker that marks nothing", path.display());
    }
}

/// What the documentation is read beside.
struct Scene {
    coucou: Coucou,
    synapse: Synapse,
    receiver: Receiver,
    database: Database,
    room_id: String,
}

impl Scene {
    async fn set() -> Self {
        let (database, receiver) = (Database::create().await, Receiver::start().await);
        // The documentation has it rotate secrets.
        receiver.signed_by_anybody();
        let coucou = Coucou::new().await.store(&database.url());
        let bridge = Bridge::new("instagram", &[]).await;
        let registrations = vec![coucou.registration(), bridge.registration()];
        let synapse = Synapse::start(Options { registrations, encrypted: true }).await;
        let mut coucou = coucou.homeserver(&synapse.url()).webhook(&receiver);
        let other = format!(
            "webhooks: [{{name: crm, url: \"{}\", secret: {}}}]\n",
            receiver.url(),
            receiver.secret()
        );
        fs::write(coucou.path("coucou.yaml"), other).unwrap();
        coucou.start().await;
        let sent = bridge.send(&synapse.url()).invite(BOT).messages("text").name("Alice").run().await;
        receiver.wait_for(1, SOON).await;
        let room_id = sent.portal().to_owned();
        Self { coucou, synapse, receiver, database, room_id }
    }

    /// A block with the addresses of this scene.
    fn here(&self, code: &str) -> String {
        code.replace("https://coucou.example.org", &self.coucou.url())
            .replace("https://matrix.example.org", &self.synapse.url())
            .replace("https://hooks.example.org/coucou", &self.receiver.url())
            .replace("!id:server", &self.room_id)
    }

    /// Runs a block in a folder of its own, in which `coucou` is a command and curl fails when it is refused.
    async fn run(&self, block: &Block) -> Result<(), String> {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().join("home");
        fs::create_dir(&home).unwrap();
        fs::write(home.join(".curlrc"), "fail-with-body\nsilent\nshow-error\nmax-time = 30\n").unwrap();
        symlink(env!("CARGO_BIN_EXE_coucou"), home.join("coucou")).unwrap();
        fs::copy(self.coucou.path("coucou.yaml"), folder.path().join("coucou.yaml")).unwrap();
        let coucou = self.coucou.command(&[]);
        let mut command = Command::new("bash");
        command.args(["-euo", "pipefail", "-c", &self.here(&block.code)]).current_dir(&folder).env_clear();
        for (name, value) in coucou.get_envs() {
            command.envs(value.map(|value| (name, value)));
        }
        let path = env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", home.display())).env("CURL_HOME", &home);
        let log = home.join("log");
        let mut process = Process::start(&block.place, command, &log);
        let ended = until(&format!("{} to end", block.place), SOON, async || process.ended()).await;
        if ended.success() {
            return Ok(());
        }
        let said = fs::read_to_string(&log).unwrap();
        Err(format!("{} ended with {ended}:\n{}\n{said}", block.place, block.code))
    }

    /// Runs the statements of a block, each of which must answer.
    async fn query(&self, block: &Block) -> Result<(), String> {
        let mut connection = PgConnection::connect(&self.database.url()).await.unwrap();
        for statement in block.code.split(';').map(str::trim).filter(|statement| !statement.is_empty()) {
            let rows = connection.fetch_all(AssertSqlSafe(statement.to_owned())).await;
            let rows = rows.map_err(|error| format!("{}: {statement}: {error}", block.place))?;
            assert!(!rows.is_empty(), "{statement}");
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_documented_command_runs() {
    let scene = Scene::set().await;
    let (mut wrong, mut count, mut seen) = (Vec::new(), 0, Vec::new());
    for block in all_blocks().into_iter().filter(|block| block.reason.is_none()) {
        let began = Instant::now();
        let done = match &*block.language {
            "sql" => scene.query(&block).await,
            language if SHELL.contains(&language) => {
                // What another page has as well.
                if seen.contains(&block.code) {
                    continue;
                }
                seen.push(block.code.clone());
                scene.run(&block).await
            }
            _ => continue,
        };
        count += 1;
        println!("{}: {:?}", block.place, began.elapsed());
        wrong.extend(done.err());
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 15, "{count}");
}

#[test]
fn blocks_are_found_with_their_reasons() {
    let page =
        "a\n```sh\none\n```\n- b\n  <!-- not run: it takes hours -->\n  ```sh\n  two\n    three\n  ```\n";
    let found = blocks("x", page);
    let code: Vec<_> = found.iter().map(|block| (&*block.code, block.reason.as_deref())).collect();
    assert_eq!(code, [("one\n", None), ("two\n  three\n", Some("it takes hours"))]);
    assert_eq!(found[1].place, "x:7");
}
