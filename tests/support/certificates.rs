//! Certificates of a test's own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

use super::run;

/// Two CAs, and a server's certificate that the first has signed for the name `localhost`; `.pem`, with a `.key` each.
pub(crate) struct Certificates {
    folder: TempDir,
}

impl Certificates {
    pub(crate) async fn make() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for ca in ["right", "wrong"] {
            certify(folder.path(), ca, &["-subj", &format!("/CN=the {ca} CA")]).await;
        }
        let signed = ["-CA", "right.pem", "-CAkey", "right.key", "-subj", "/CN=server"];
        let names =
            ["-addext", "subjectAltName=DNS:localhost", "-addext", "basicConstraints=critical,CA:FALSE"];
        certify(folder.path(), "server", &[&signed[..], &names].concat()).await;
        fs::write(folder.path().join("nothing.pem"), "no certificate\n").unwrap();
        Self { folder }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }
}

/// Makes a key and a certificate of it.
async fn certify(folder: &Path, name: &str, args: &[&str]) {
    let mut command = Command::new("openssl");
    command.current_dir(folder).args(["req", "-x509", "-days", "2", "-newkey", "ec", "-nodes"]);
    command.args(["-pkeyopt", "ec_paramgen_curve:prime256v1"]).args(args);
    command.args(["-keyout", &format!("{name}.key"), "-out", &format!("{name}.pem")]);
    run(command).await;
}
