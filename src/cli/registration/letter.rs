//! What is printed after the file was written: a letter to the homeserver's administrator, and what the
//! operator does next.

use std::{
    io::{self, Write},
    path::Path,
};

use super::document::Document;

/// Prints both. Contains no token.
pub(super) fn print(out: &mut dyn Write, document: &Document, file: &Path) -> io::Result<()> {
    writeln!(out, "{}", intro(file))?;
    writeln!(out, "{}", to_administrator(document))?;
    writeln!(out, "{}", to_operator(document, file))
}

fn intro(file: &Path) -> String {
    let file = file.display();
    format!(
        "Wrote {file}. It holds two secret tokens. The homeserver and coucou need the same file.

================ send this, with {file}, to the homeserver's administrator ================
"
    )
}

fn to_administrator(document: &Document) -> String {
    let Document { id, url, .. } = document;
    let reach = reach(url);
    format!(
        "Please install the application service \"{id}\" on the homeserver. Its registration file is attached; it
holds secrets. It needs two experimental features that are off by default; they push encryption keys to it.

With matrix-docker-ansible-deploy (etke.cc): put the file on the server as
/matrix/synapse/ext/{id}-registration.yaml, add to vars.yml (to the lists that are there, if they are),
and run the playbook with --tags=setup-synapse,start:

    matrix_synapse_container_extra_arguments:
      - \"--mount type=bind,src=/matrix/synapse/ext/{id}-registration.yaml,dst=/{id}-registration.yaml,ro\"
    matrix_synapse_app_service_config_files:
      - /{id}-registration.yaml
    matrix_synapse_experimental_features_msc2409_to_device_messages_enabled: true
    matrix_synapse_experimental_features_msc3202_transaction_extensions_enabled: true

With any other Synapse: put the file where Synapse can read it, add to homeserver.yaml, and restart Synapse:

    app_service_config_files:
      - /etc/matrix-synapse/{id}-registration.yaml
    experimental_features:
      msc2409_to_device_messages_enabled: true
      msc3202_transaction_extensions: true

The homeserver calls the service at {url}
{reach}"
    )
}

/// What must be true of the URL.
fn reach(url: &str) -> String {
    let needs =
        "PUT requests with bodies of up to 32 MiB must pass, and no login or other proxy authentication
may stand between: the registration's own token protects it.";
    if url.starts_with("https://") {
        return format!(
            "and must reach it from where it runs, with a certificate that it trusts.\n{needs}\n"
        );
    }
    format!(
        "which works on the same machine or a private network only. A homeserver elsewhere, such as one at
etke.cc, needs a public HTTPS URL: make the registration again with --url https://coucou.example.org.
{needs}
"
    )
}

fn to_operator(document: &Document, file: &Path) -> String {
    let file = file.display();
    let Document { id, bot, .. } = document;
    let (owner, then) = match &document.owner {
        Some(owner) => (
            format!("       COUCOU_OWNER={owner}\n"),
            format!("3. Nothing: the bridged conversations of {owner} arrive by themselves."),
        ),
        None => (String::new(), format!("3. Invite {bot} into the rooms that shall be relayed.")),
    };
    let bot = match bot.localpart() {
        "coucou" => String::new(),
        localpart => format!("       COUCOU_APPSERVICE_BOT={localpart}\n"),
    };
    format!(
        "================ what you do next ================

1. Set, by environment or in coucou.yaml (docs/coucou.example.yaml):
       COUCOU_HOMESERVER_URL=https://matrix.example.org   (the homeserver's client-server API)
       COUCOU_APPSERVICE_REGISTRATION={file}
{bot}{owner}   Where there is no place for a file: COUCOU_APPSERVICE_ID={id}, and the tokens from the file as
   COUCOU_APPSERVICE_AS_TOKEN and COUCOU_APPSERVICE_HS_TOKEN.
2. When the administrator has installed the file: coucou serve
{then}"
    )
}
