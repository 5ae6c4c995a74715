//! Receivers in other languages: the snippets of `docs/webhook.md`, with the published libraries.

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use http::HeaderMap;
use serde_json::{Value, json};
use tokio::task::spawn_blocking;

use super::{receiver::Attempt, repository, run, until};

/// One delivery as a consumer gets it.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) secret: String,
    pub(crate) id: String,
    pub(crate) timestamp: String,
    pub(crate) signature: String,
    pub(crate) body: String,
}

impl Case {
    /// An attempt, to be verified with that secret.
    pub(crate) fn of(attempt: &Attempt, secret: &str) -> Self {
        let header = |name: &str| attempt.headers[name].to_str().unwrap().to_owned();
        Self {
            secret: secret.to_owned(),
            id: header("webhook-id"),
            timestamp: header("webhook-timestamp"),
            signature: header("webhook-signature"),
            body: String::from_utf8(attempt.body.to_vec()).unwrap(),
        }
    }

    fn line(&self) -> String {
        let headers = json!({
            "webhook-id": self.id, "webhook-timestamp": self.timestamp, "webhook-signature": self.signature,
        });
        json!({"secret": self.secret, "headers": headers, "body": self.body}).to_string()
    }
}

/// The whole consumer of the documentation, on a port, with its database in that file. Ends when dropped.
pub(crate) async fn consumer(port: u16, secret: &str, database: &Path) -> Consumer {
    let folder = repository().join("tests/consumers");
    let installed = run(Command::new(folder.join("install.sh"))).await;
    // The program itself, not the script that finds it: that one would be ended alone.
    let python = run_python_path().await;
    let child = Command::new(python)
        .arg(folder.join("consumer.py"))
        .env("PYTHONPATH", Path::new(installed.trim()).join("python"))
        .env("PORT", port.to_string())
        .env("WEBHOOK_SECRET", secret)
        .env("DATABASE", database)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    until("the consumer to listen", Duration::from_secs(20), async || {
        tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok()
    })
    .await;
    Consumer(child)
}

/// A consumer; killed when dropped.
pub(crate) struct Consumer(Child);

impl Drop for Consumer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn run_python_path() -> String {
    let mut command = Command::new(repository().join("tests/homeserver/synapse.sh"));
    command.args(["python", "-c", "import sys; print(sys.executable)"]);
    run(command).await.trim().to_owned()
}

/// What every snippet says of each case, by language.
pub(crate) async fn verdicts(cases: &[Case]) -> Vec<(&'static str, Vec<Vec<bool>>)> {
    let folder = repository().join("tests/consumers");
    let installed = run(Command::new(folder.join("install.sh"))).await;
    let installed = Path::new(installed.trim());
    let mut python = Command::new(repository().join("tests/homeserver/synapse.sh"));
    python.arg("python").arg(folder.join("verify.py")).env("PYTHONPATH", installed.join("python"));
    let mut node = Command::new(installed.join("bin/node"));
    node.arg(folder.join("verify.cjs")).arg(installed);
    let mut php = Command::new(installed.join("bin/php"));
    php.arg(folder.join("verify.php"));
    let languages = [("Python", python), ("JavaScript", node), ("PHP", php)];
    let lines: Vec<String> = cases.iter().map(Case::line).collect();
    let mut verdicts = vec![("Rust", cases.iter().map(in_rust).collect())];
    for (language, mut command) in languages {
        let input = lines.join("\n") + "\n";
        let output = spawn_blocking(move || {
            let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
            child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
            child.wait_with_output().unwrap()
        });
        let output = output.await.unwrap();
        assert!(output.status.success(), "{language} ended with {}", output.status);
        let said = String::from_utf8(output.stdout).unwrap();
        let said: Vec<Vec<bool>> = said
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap())
            .map(|line| line.as_array().unwrap().iter().map(|verdict| verdict.as_bool().unwrap()).collect())
            .collect();
        assert_eq!(said.len(), cases.len());
        verdicts.push((language, said));
    }
    verdicts
}

mod snippet {
    include!("../consumers/verify.rs");

    pub(super) fn says(secret: &str, headers: &HeaderMap, body: &[u8]) -> bool {
        verify(secret, headers, body)
    }
}

fn in_rust(case: &Case) -> Vec<bool> {
    let page = fs::read_to_string(repository().join("docs/webhook.md")).unwrap();
    let snippet = include_str!("../consumers/verify.rs");
    assert!(
        page.contains(&format!("```rust\n{snippet}```")),
        "docs/webhook.md has the snippet that is run here"
    );
    let mut headers = HeaderMap::new();
    headers.insert("webhook-id", case.id.parse().unwrap());
    headers.insert("webhook-timestamp", case.timestamp.parse().unwrap());
    headers.insert("webhook-signature", case.signature.parse().unwrap());
    vec![snippet::says(&case.secret, &headers, case.body.as_bytes())]
}
