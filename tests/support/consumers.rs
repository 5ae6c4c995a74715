//! Receivers in other languages: the snippets of `docs/webhook.md`, with the published libraries.

use std::{
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use serde_json::{Value, json};
use tokio::task::spawn_blocking;

use super::{receiver::Attempt, repository, run};

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

/// What every snippet says of each case, by language. Without Node there is only Python.
pub(crate) async fn verdicts(cases: &[Case]) -> Vec<(&'static str, Vec<Vec<bool>>)> {
    let folder = repository().join("tests/consumers");
    let installed = run(Command::new(folder.join("install.sh"))).await;
    let installed = Path::new(installed.trim());
    let mut python = Command::new(repository().join("tests/homeserver/synapse.sh"));
    python.arg("python").arg(folder.join("verify.py")).env("PYTHONPATH", installed.join("python"));
    let mut languages = vec![("Python", python)];
    if installed.join("node").exists() {
        let mut node = Command::new("node");
        node.arg(folder.join("verify.cjs")).arg(installed);
        languages.push(("JavaScript", node));
    } else {
        println!("Node is not installed: its library is not tested");
    }
    let lines: Vec<String> = cases.iter().map(Case::line).collect();
    let mut verdicts = Vec::new();
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
